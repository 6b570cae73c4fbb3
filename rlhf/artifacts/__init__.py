"""Artifacts: what a stage leaves behind, sealed by a manifest that is written last.

A folder without manifest.json is not an artifact. `verify` reads every file that the manifest lists, so that a consumer
refuses a damaged or mismatched artifact before it loads weights. `python -m rlhf.artifacts show PATH` prints an
artifact and its ancestors.
"""

from rlhf.artifacts.manifest import load_manifest, verify

__all__ = ["load_manifest", "verify"]
