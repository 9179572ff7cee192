# SPDX-License-Identifier: Apache-2.0
"""Dashboards, alerts and recording rules as data, and the files that are made of them."""
