from __future__ import annotations

import pickle

import pytest

from scalepet.errors import CheckpointError, ConfigError, DataError, Faults, ScalepetError


def test_an_error_holds_one_fault_or_many() -> None:
    assert ConfigError("a").faults == ("a",)
    assert DataError(["a", "b"]).faults == ("a", "b")
    assert str(DataError(["a", "b"])) == "a\nb"
    with pytest.raises(AssertionError):
        ScalepetError([])


def test_an_error_crosses_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(CheckpointError(["a", "b"])))
    assert type(error) is CheckpointError
    assert error.faults == ("a", "b")


def test_faults_are_collected_and_raised_together() -> None:
    faults = Faults()
    with faults.noted():
        raise DataError(["a", "b"])
    with faults.noted():
        pass
    with faults.noted():
        raise ConfigError("c")
    with pytest.raises(ConfigError) as caught:
        faults.raise_any()
    assert caught.value.faults == ("a", "b", "c")


def test_without_a_fault_nothing_is_raised_and_other_errors_go_through() -> None:
    faults = Faults()
    faults.raise_any()
    with pytest.raises(KeyError), faults.noted():
        raise KeyError("ours")
