# SPDX-License-Identifier: Apache-2.0
"""The words of Kinema: resources, stage configs, catalogue and the pure plan from job to pipeline.

Everything else in the project speaks through these models; they need pydantic and YAML only.
"""
