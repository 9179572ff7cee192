# SPDX-License-Identifier: Apache-2.0
"""From clips to latents and text embeddings, and from frames to mp4."""
