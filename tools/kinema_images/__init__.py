# SPDX-License-Identifier: Apache-2.0
"""Builds Kinema's images with buildah, on bases made by mmdebstrap. Needs nothing but Python's own library."""
