# SPDX-License-Identifier: Apache-2.0
"""The demo, in parts that the tests on a full cluster use too: install, fill a workspace, follow a job."""
