"""What a run says while it goes: metrics.jsonl always, wandb when asked, a progress bar."""

from scalepet.tracking.jsonl import JsonlTracker, Seen, first_records, read_records
from scalepet.tracking.progress import track_steps
from scalepet.tracking.redact import credential_in, without_secrets
from scalepet.tracking.seal import check_seal, seal
from scalepet.tracking.tracker import METRICS_FILE, Tracker, Trackers, Value, open_trackers
from scalepet.tracking.wandb import WandbMode, WandbTracker

__all__ = [
    "METRICS_FILE",
    "JsonlTracker",
    "Seen",
    "Tracker",
    "Trackers",
    "Value",
    "WandbMode",
    "WandbTracker",
    "check_seal",
    "credential_in",
    "first_records",
    "open_trackers",
    "read_records",
    "seal",
    "track_steps",
    "without_secrets",
]
