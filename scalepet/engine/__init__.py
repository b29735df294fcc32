"""The engine: how a run runs. The only room that knows DeepSpeed, and only once it is needed."""

from scalepet.backbones import full_shape
from scalepet.engine.ds_config import (
    PRECISIONS,
    Precision,
    compose_ds_config,
    read_ds_file,
    shipped_names,
    zero_stage,
)
from scalepet.engine.evaluate import Answerer, Answers, Track, answer_all, each_row
from scalepet.engine.files import read_folder, write_folder
from scalepet.engine.loop import LossSum, StepReport, on_device, train_step
from scalepet.engine.parameters import (
    load_trained,
    read_whole,
    shard_filler,
    trained_parameters,
    write_whole,
)
from scalepet.engine.processes import (
    end_process,
    ended_neighbours,
    is_launched,
    join_processes,
    leave_processes,
    peak_memory_bytes,
    pick_device,
)
from scalepet.engine.run_state import (
    RunState,
    load_run_state,
    on_main,
    restore_random_states,
    resume,
    save_run_state,
)
from scalepet.engine.schedule import SCHEDULES, Schedule, learning_rate_factor
from scalepet.engine.sharded import AdamW, Engine, MasterShard, building_into_shards, untrained

__all__ = [
    "PRECISIONS",
    "SCHEDULES",
    "AdamW",
    "Answerer",
    "Answers",
    "Engine",
    "LossSum",
    "MasterShard",
    "Precision",
    "RunState",
    "Schedule",
    "StepReport",
    "Track",
    "answer_all",
    "building_into_shards",
    "compose_ds_config",
    "each_row",
    "end_process",
    "ended_neighbours",
    "full_shape",
    "is_launched",
    "join_processes",
    "learning_rate_factor",
    "leave_processes",
    "load_run_state",
    "load_trained",
    "on_device",
    "on_main",
    "peak_memory_bytes",
    "pick_device",
    "read_ds_file",
    "read_folder",
    "read_whole",
    "restore_random_states",
    "resume",
    "save_run_state",
    "shard_filler",
    "shipped_names",
    "train_step",
    "trained_parameters",
    "untrained",
    "write_folder",
    "write_whole",
    "zero_stage",
]
