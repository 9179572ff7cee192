# SPDX-License-Identifier: Apache-2.0
"""What can go wrong while images are built."""


class ImageError(Exception):
    """An image cannot be built or handed over; the message says why and what to do."""
