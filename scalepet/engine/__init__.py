"""The engine: how a run runs. The only room that knows DeepSpeed, and only once it is needed."""

from scalepet.backbones import full_shape
from scalepet.engine.ds_config import (
    PRECISIONS,
    Precision,
    check_precision,
    compose_ds_config,
    find_ds_file,
    read_ds_file,
    shipped_names,
    zero_stage,
)
from scalepet.engine.evaluate import Answerer, Answers, Track, answer_all, each_row
from scalepet.engine.files import RECORD_FILE, read_folder, write_folder
from scalepet.engine.loop import LossSum, Skipped, StepReport, on_device, train_step
from scalepet.engine.ops import check_ops
from scalepet.engine.parameters import (
    load_trained,
    read_whole,
    shard_filler,
    trained_parameters,
    write_whole,
)
from scalepet.engine.processes import (
    closing,
    end_process,
    ended_neighbours,
    forget_peak_memory,
    is_launched,
    join_processes,
    joined,
    leave_processes,
    peak_memory_bytes,
    pick_device,
)
from scalepet.engine.run_state import (
    RunState,
    gather_run_state,
    on_main,
    read_run_state,
    restore_random_states,
    resume,
)
from scalepet.engine.schedule import SCHEDULES, Schedule, learning_rate_factor
from scalepet.engine.sharded import AdamW, Engine, MasterShard, building_into_shards, untrained
from scalepet.engine.states import SaveReport, States, newest_state, saved_steps, state_folder

__all__ = [
    "PRECISIONS",
    "RECORD_FILE",
    "SCHEDULES",
    "AdamW",
    "Answerer",
    "Answers",
    "Engine",
    "LossSum",
    "MasterShard",
    "Precision",
    "RunState",
    "SaveReport",
    "Schedule",
    "Skipped",
    "States",
    "StepReport",
    "Track",
    "answer_all",
    "building_into_shards",
    "check_ops",
    "check_precision",
    "closing",
    "compose_ds_config",
    "each_row",
    "end_process",
    "ended_neighbours",
    "find_ds_file",
    "forget_peak_memory",
    "full_shape",
    "gather_run_state",
    "is_launched",
    "join_processes",
    "joined",
    "learning_rate_factor",
    "leave_processes",
    "load_trained",
    "newest_state",
    "on_device",
    "on_main",
    "peak_memory_bytes",
    "pick_device",
    "read_ds_file",
    "read_folder",
    "read_run_state",
    "read_whole",
    "restore_random_states",
    "resume",
    "saved_steps",
    "shard_filler",
    "shipped_names",
    "state_folder",
    "train_step",
    "trained_parameters",
    "untrained",
    "write_folder",
    "write_whole",
    "zero_stage",
]
