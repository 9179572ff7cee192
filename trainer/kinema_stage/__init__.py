# SPDX-License-Identifier: Apache-2.0
"""The contract every stage keeps."""
