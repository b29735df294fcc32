"""Load T5s with tables of their own into ZeRO-3 shards, through transformers; print sums that tell
the tables.
"""

from __future__ import annotations

import json
import sys

import torch

from scalepet.backbones import Backbone, load_model, read_model_config
from scalepet.backbones.families import T5_TABLES
from scalepet.engine import (
    building_into_shards,
    compose_ds_config,
    end_process,
    join_processes,
    leave_processes,
    read_whole,
)

join_processes()
ds_config = compose_ds_config(
    {"zero_optimization": {"stage": 3}},
    precision="fp32",
    micro_batch_size=1,
    num_micro_batches=1,
    clip=None,
)
found = []
for folder in json.loads(sys.argv[1]):
    backbone = Backbone(folder)
    config = read_model_config(backbone)
    with building_into_shards(ds_config):
        model = load_model(backbone, config, dtype=torch.float32).model
    tables = [model.get_parameter(name) for name in T5_TABLES]
    found.append([read_whole(table).double().sum().item() for table in tables])
print("SUMS", json.dumps(found))
leave_processes()
end_process(0)
