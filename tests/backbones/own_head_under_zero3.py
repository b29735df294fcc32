"""Load a T5 with a head of its own into ZeRO-3 shards; print sums that tell head and embedding."""

from __future__ import annotations

import json
import sys

import torch

from scalepet.backbones import Backbone, load_model, read_model_config
from scalepet.engine import (
    building_into_shards,
    compose_ds_config,
    end_process,
    join_processes,
    leave_processes,
)

join_processes()
backbone = Backbone(json.loads(sys.argv[1]))
config = read_model_config(backbone)
ds_config = compose_ds_config(
    {"zero_optimization": {"stage": 3}},
    precision="fp32",
    micro_batch_size=1,
    num_micro_batches=1,
    clip=None,
)
with building_into_shards(ds_config):
    model = load_model(backbone, config, dtype=torch.float32).model

import deepspeed  # noqa: E402 (only once scalepet has made it quiet)

weights = {"head": model.lm_head.weight, "embedding": model.shared.weight}
with deepspeed.zero.GatheredParameters(list(weights.values())):
    print(
        "SUMS", json.dumps({name: weight.double().sum().item() for name, weight in weights.items()})
    )
leave_processes()
end_process(0)
