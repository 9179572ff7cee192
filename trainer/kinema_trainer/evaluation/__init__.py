# SPDX-License-Identifier: Apache-2.0
"""What looks at the model while it is trained: validation and previews."""
