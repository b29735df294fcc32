"""What a DeepSpeed file may say, what is refused, and what DeepSpeed makes of the whole config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from scalepet import dist
from scalepet.engine import compose_ds_config, read_ds_file, shipped_names, zero_stage
from scalepet.errors import ConfigError
from scalepet.planning import HPZ_PARTITION

FOLDER = Path(__file__).parents[2] / "ds_configs"
STAGES = {
    "zero0": 0,
    "zero2": 2,
    "zero3": 3,
    "zero3_hpz": 3,
    "zero3_offload_cpu": 3,
    "zero3_offload_nvme": 3,
}
ALLOWED_KEYS = "allowed: zero_optimization, aio, comms_logger, communication_data_type"


def faults_of(content: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_ds_file(content)
    return list(caught.value.faults)


def zero_faults_of(**options: Any) -> list[str]:
    return faults_of({"zero_optimization": options})


def compose(ds_file: dict[str, Any], **options: Any) -> dict[str, Any]:
    settings = {
        "precision": "bf16",
        "micro_batch_size": 3,
        "num_micro_batches": 5,
        "clip": None,
        **options,
    }
    return compose_ds_config(ds_file, **settings)


@pytest.mark.parametrize(("size", "world_size"), [(8, 1), (8, 2), (8, 16), (4, 12), (0, 3)])
def test_nodes_of_hpz(size: int, world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "world_size", lambda: world_size)
    compose({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": size}})


def test_nodes_of_hpz_that_cannot_be_cut_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "world_size", lambda: 12)
    with pytest.raises(ConfigError, match="zero_hpz_partition_size: 8 for 12 processes"):
        compose(read_ds_file("zero3_hpz"))


class TestShippedFiles:
    def test_the_planner_knows_the_nodes_of_hpz(self) -> None:
        shipped = read_ds_file("zero3_hpz")["zero_optimization"]
        assert shipped["zero_hpz_partition_size"] == HPZ_PARTITION

    def test_names(self) -> None:
        paths = list(FOLDER.glob("*.json"))
        assert len(paths) == 6, "no file is read where this glob finds none"
        assert shipped_names() == sorted(STAGES) == sorted(path.stem for path in paths)

    @pytest.mark.parametrize("name", STAGES)
    def test_a_name_and_a_path_are_the_same_valid_file(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        content = read_ds_file(name)
        assert content == read_ds_file(str(FOLDER / f"{name}.json")) == read_ds_file(content)
        assert content == json.loads((FOLDER / f"{name}.json").read_text())
        assert zero_stage(content) == STAGES[name]

    def test_a_shipped_name_wins_over_a_file_of_that_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "zero3").write_text("{}")
        assert zero_stage(read_ds_file("zero3")) == 3

    def test_a_path_is_taken_as_it_stands(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine").write_text('{"zero_optimization": {"stage": 1}}')
        (tmp_path / "mine.json").write_text('{"zero_optimization": {"stage": 2}}')
        assert zero_stage(read_ds_file("mine.json")) == 2
        assert zero_stage(read_ds_file("mine")) == 1
        assert zero_stage(read_ds_file(str(tmp_path / "mine"))) == 1

    def test_an_empty_file_is_stage_0(self) -> None:
        assert read_ds_file({}) == {}
        assert zero_stage({}) == zero_stage({"zero_optimization": {}}) == 0


class TestRefusals:
    def test_a_misspelt_top_level_key(self) -> None:
        (fault,) = faults_of({"zero_optimzation": {"stage": 3}})
        assert fault == f"deepspeed: unknown key 'zero_optimzation'; {ALLOWED_KEYS}"

    def test_deepspeed_itself_takes_a_misspelt_key_without_a_word(self) -> None:
        """Why scalepet does not leave the check to DeepSpeed."""
        batch = {"train_micro_batch_size_per_gpu": 1}
        assert DeepSpeedConfig({**batch, "zero_optimzation": {"stage": 3}}).zero_config.stage == 0
        assert DeepSpeedConfig({**batch, "aio": {"block_sise": 5}}).aio_config["block_size"] != 5
        auto = {"stage": 3, "reduce_bucket_size": "auto"}
        zero = DeepSpeedConfig({**batch, "zero_optimization": auto}).zero_config
        assert zero.reduce_bucket_size == 500_000_000

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"stagee": 3}, "stagee = 3"),
            ({"stage": 4}, "stage = 4"),
            ({"stage": None}, "stage = None"),
            ({"overlap_comm": 7}, "overlap_comm = 7"),
            ({"reduce_bucket_size": "big"}, "reduce_bucket_size = 'big'"),
            ({"reduce_bucket_size": 0}, "reduce_bucket_size = 0"),
            ({"stage": 3, "offload_param": {"devise": "cpu"}}, "offload_param.devise = 'cpu'"),
            ({"stage": 3, "offload_param": {"device": "gpu"}}, "offload_param.device = 'gpu'"),
            ({"stage": 3, "offload_param": "cpu"}, "offload_param = 'cpu'"),
        ],
    )
    def test_a_wrong_zero_option(self, options: dict[str, Any], expected: str) -> None:
        (fault,) = zero_faults_of(**options)
        start = f"deepspeed: zero_optimization.{expected}: "
        assert fault.startswith(start)
        assert any(
            word in fault[len(start) :] for word in ("should be", "not permitted", "no such option")
        )

    def test_zero_options_that_do_not_go_together(self) -> None:
        """DeepSpeed finds these faults after the single options; they are no tracebacks either."""
        partial = {"device": "cpu", "ratio": 0.5}
        (fault,) = zero_faults_of(stage=2, offload_optimizer=partial)
        assert fault.startswith("deepspeed: zero_optimization: ") and "only" in fault
        assert len(fault) < 200, "the value of every option is no help"
        (fault,) = zero_faults_of(stage=2, cpu_offload=True, offload_optimizer={"device": "cpu"})
        assert "'cpu_offload'" in fault and "'offload_optimizer'" in fault
        (fault,) = faults_of({"zero_optimization": {3: 1}})
        assert "must be strings" in fault

    @pytest.mark.parametrize("zero", [None, True, 3, "zero3", [3]])
    def test_a_zero_section_that_is_no_object(self, zero: Any) -> None:
        expected = f"deepspeed: zero_optimization is {zero!r}; allowed: an object"
        assert faults_of({"zero_optimization": zero}) == [expected]

    def test_quantized_frozen_weights(self) -> None:
        (fault,) = zero_faults_of(stage=3, zero_quantized_nontrainable_weights=True)
        assert "zero_optimization.zero_quantized_nontrainable_weights is refused" in fault
        assert "zeroes weights" in fault
        off = {"zero_optimization": {"zero_quantized_nontrainable_weights": False}}
        assert read_ds_file(off) == off

    @pytest.mark.parametrize(
        ("content", "trail"),
        [
            ({"zero_optimization": "auto"}, "zero_optimization"),
            ({"zero_optimization": {"stage": "auto"}}, "zero_optimization.stage"),
            (
                {"zero_optimization": {"offload_param": {"buffer_count": "auto"}}},
                "zero_optimization.offload_param.buffer_count",
            ),
            (
                {"zero_optimization": {"leaf_module": {"classes": ["T5Block", "auto"]}}},
                "zero_optimization.leaf_module.classes[1]",
            ),
            ({"aio": {"block_size": [[{"a": "auto"}]]}}, "aio.block_size[0][0].a"),
            ({"communication_data_type": "auto"}, "communication_data_type"),
            ({"optimizer": {"params": {"lr": "auto"}}}, "optimizer.params.lr"),
        ],
    )
    def test_auto_at_any_depth(self, content: dict[str, Any], trail: str) -> None:
        faults = faults_of(content)
        assert [f for f in faults if f'deepspeed: {trail} is "auto"' in f and "allowed:" in f]

    @pytest.mark.parametrize(
        ("key", "home"),
        [
            ("train_batch_size", "train.batch_size"),
            ("train_micro_batch_size_per_gpu", "train.micro_batch_size"),
            ("gradient_accumulation_steps", "train.batch_size and train.micro_batch_size"),
            ("gradient_clipping", "train.clip"),
            ("bf16", "precision"),
            ("fp16", "precision"),
            ("optimizer", "train.learning_rate and train.weight_decay"),
            ("scheduler", "train.schedule"),
            ("wandb", "wandb"),
        ],
    )
    def test_what_belongs_to_the_run(self, key: str, home: str) -> None:
        (fault,) = faults_of({key: 1})
        assert fault == f"deepspeed: {key!r} has no place here; set {home} in the run's config"

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ({"aio": 3}, "aio is 3; allowed: an object"),
            ({"aio": {"block_sise": 5}}, "unknown key aio.block_sise; allowed: block_size, queue_"),
            ({"aio": {"queue_depth": "8"}}, "aio.queue_depth is '8'; allowed: int"),
            ({"aio": {"single_submit": 1}}, "aio.single_submit is 1; allowed: bool"),
            ({"comms_logger": True}, "comms_logger is True; allowed: an object"),
            ({"comms_logger": {"on": True}}, "comms_logger.on = True: "),
            (
                {"communication_data_type": "fp8"},
                "communication_data_type is 'fp8'; allowed: fp32, bf16, fp16",
            ),
        ],
    )
    def test_the_other_sections(self, content: dict[str, Any], expected: str) -> None:
        (fault,) = faults_of(content)
        assert fault.startswith(f"deepspeed: {expected}")

    def test_the_other_sections_as_they_should_be(self) -> None:
        content = {
            "aio": {"block_size": 2**20, "queue_depth": 8, "single_submit": False},
            "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]},
            "communication_data_type": "bf16",
        }
        assert read_ds_file(content) == content
        config = DeepSpeedConfig(compose(content))
        assert config.comms_config.comms_logger.prof_ops == ["all_reduce"]

    def test_all_faults_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.json"
        content = {
            "zero_optimzation": {},
            "gradient_clipping": 1.0,
            "aio": {"block_sise": 5},
            "zero_optimization": {
                "stage": 9,
                "stagee": 3,
                "overlap_comm": "auto",
                "offload_param": {"device": "gpu"},
                "zero_quantized_nontrainable_weights": True,
            },
        }
        path.write_text(json.dumps(content))
        faults = faults_of(str(path))
        assert all(fault.startswith(f"{path}: ") for fault in faults)
        named = [
            "'zero_optimzation'",
            "'gradient_clipping'",
            "aio.block_sise",
            "stage = 9",
            "stagee = 3",
            'overlap_comm is "auto"',
            "device = 'gpu'",
            "zero_quantized_nontrainable_weights",
        ]
        assert len(faults) == len(named)
        for name in named:
            assert sum(name in fault for fault in faults) == 1, name


class TestFilesThatCannotBeRead:
    @pytest.mark.parametrize("asked", ["zero9", "", "no/such/file.json", "x" * 300])
    def test_missing(self, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (fault,) = faults_of(asked)
        assert f"{asked!r} is neither a file nor one of {', '.join(sorted(STAGES))}" in fault

    def test_a_folder(self, tmp_path: Path) -> None:
        (fault,) = faults_of(str(tmp_path))
        assert "neither a file nor one of" in fault

    @pytest.mark.parametrize(
        "content", [b"", b"{'stage': 3}", b"stage: 3", b'{"a": 1', b"\xff\xfe"]
    )
    def test_not_json(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "mine.json"
        path.write_bytes(content)
        (fault,) = faults_of(str(path))
        assert fault.startswith(f"deepspeed: {path} is no JSON: ")

    @pytest.mark.parametrize(
        ("content", "kind"),
        [("[]", "list"), ("3", "int"), ('"zero3"', "str"), ("null", "NoneType"), ("true", "bool")],
    )
    def test_not_an_object(self, content: str, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "mine.json"
        path.write_text(content)
        assert faults_of(str(path)) == [f"deepspeed: {path} holds a {kind}; allowed: an object"]


class TestCompose:
    def test_what_the_run_says(self) -> None:
        composed = compose({"aio": {"queue_depth": 4}}, clip=0.5)
        assert composed["train_micro_batch_size_per_gpu"] == 3
        assert composed["gradient_accumulation_steps"] == 5
        assert composed["gradient_clipping"] == 0.5
        assert composed["bf16"] == {"enabled": True}
        assert composed["aio"] == {"queue_depth": 4}
        assert compose({}, precision="fp32")["bf16"] == {"enabled": False}

    def test_no_clipping_is_said_where_deepspeed_would_clip(self) -> None:
        assert DeepSpeedConfig({"train_micro_batch_size_per_gpu": 1}).gradient_clipping == 1.0
        assert compose({}, clip=None)["gradient_clipping"] == 0.0
        assert DeepSpeedConfig(compose({}, clip=None)).gradient_clipping == 0.0

    @pytest.mark.parametrize(
        ("stage", "precision", "expected"),
        [(0, "bf16", 1), (0, "fp32", 0), (1, "fp32", 1), (2, "bf16", 2), (3, "bf16", 3)],
    )
    def test_stage(self, stage: int, precision: str, expected: int) -> None:
        composed = compose({"zero_optimization": {"stage": stage}}, precision=precision)
        assert composed["zero_optimization"]["stage"] == zero_stage(composed) == expected

    def test_a_file_without_a_stage(self) -> None:
        assert zero_stage(compose({}, precision="fp32")) == 0
        assert zero_stage(compose({}, precision="bf16")) == 1

    def test_a_stage_in_quotes_shards_the_model_as_well(self) -> None:
        """transformers compares it with 3, and would load the whole model on every rank."""
        composed = compose(read_ds_file({"zero_optimization": {"stage": "3"}}))
        assert type(composed["zero_optimization"]["stage"]) is int
        assert composed["zero_optimization"]["stage"] == 3

    def test_the_bucket_is_small_unless_the_file_says_otherwise(self) -> None:
        assert compose({})["zero_optimization"]["reduce_bucket_size"] == 2_000_000
        given = {"zero_optimization": {"stage": 3, "reduce_bucket_size": 7}}
        assert compose(given)["zero_optimization"]["reduce_bucket_size"] == 7

    def test_the_file_is_left_as_it_is(self) -> None:
        ds_file = {"zero_optimization": {"stage": 0}}
        compose(ds_file)
        assert ds_file == {"zero_optimization": {"stage": 0}}

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    @pytest.mark.parametrize("name", STAGES)
    def test_deepspeed_takes_it(self, name: str, precision: str) -> None:
        config = DeepSpeedConfig(compose(read_ds_file(name), precision=precision, clip=0.25))
        stage = 1 if (name, precision) == ("zero0", "bf16") else STAGES[name]
        assert config.zero_config.stage == stage
        assert config.zero_config.reduce_bucket_size == 2_000_000
        assert config.train_micro_batch_size_per_gpu == 3
        assert config.gradient_accumulation_steps == 5
        assert config.gradient_clipping == 0.25
        assert config.bfloat16_config.enabled is (precision == "bf16")
        assert config.zero_allow_untested_optimizer is True
        assert config.zero_force_ds_cpu_optimizer is False


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("offload_param", {"device": "cpu"}),
        ("zero_hpz_partition_size", 8),
        ("zero_quantized_weights", True),
    ],
)
def test_what_only_stage_3_does_is_refused_below_it(stage, name, value, monkeypatch):
    monkeypatch.setattr("scalepet.engine.ds_faults.sees_gpus", lambda: True)
    (fault,) = zero_faults_of(stage=stage, **{name: value})
    assert f"{name} is {value!r} at stage {stage}" in fault and "allowed: stage 3" in fault


def test_what_only_stage_3_does_may_be_off_below_it():
    off = {"offload_param": None, "zero_hpz_partition_size": 1, "zero_quantized_weights": False}
    read_ds_file({"zero_optimization": {"stage": 2, **off}})


@pytest.mark.parametrize("name", ["zero_quantized_weights", "zero_quantized_gradients"])
def test_int8_in_transit_needs_a_cuda_device(name, monkeypatch):
    content = {"zero_optimization": {"stage": 3, name: True}}
    monkeypatch.setattr("scalepet.engine.ds_faults.sees_gpus", lambda: False)
    (fault,) = faults_of(content)
    assert f"zero_optimization.{name} is True" in fault and "no CUDA device" in fault
    monkeypatch.setattr("scalepet.engine.ds_faults.sees_gpus", lambda: True)
    assert read_ds_file(content) == content


@pytest.mark.parametrize("name", ["offload_param", "offload_optimizer"])
def test_nvme_without_a_folder_is_refused(name):
    zero = {"stage": 3, name: {"device": "nvme"}}
    with pytest.raises(ConfigError, match=f"{name}.nvme_path is missing"):
        read_ds_file({"zero_optimization": zero})


def test_a_misspelt_option_comes_with_those_that_exist():
    with pytest.raises(ConfigError, match="stagee = 3: no such option; allowed: .*stage"):
        read_ds_file({"zero_optimization": {"stagee": 3}})
