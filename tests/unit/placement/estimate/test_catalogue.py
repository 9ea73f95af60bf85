"""The catalogue is data that a schema checks and a user extends."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidArgument, NotFound
from services.placement.estimate.calibration import load_calibration
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.cluster import described


def test_every_instance_names_a_known_gpu_and_link():
    known = load_catalogue()
    for instance in known.instances.values():
        assert known.link(known.gpu(instance.gpu)).ranks


def test_a_user_adds_a_gpu_and_a_type_without_code(tmp_path):
    (tmp_path / "gpus.yaml").write_text(
        "gpus: [{name: x1, memory_gb: 64, bandwidth_gb_per_s: 1000, fp16_tflops: 200, link: pcie4}]"
    )
    (tmp_path / "instances.yaml").write_text(
        "instances: [{name: x.large, gpu: x1, gpu_count: 2, network_gbps: 10, burst_gbps: 10,"
        " price_per_hour: 2}]"
    )
    kind = described(load_catalogue(tmp_path), instance_type="x.large")
    assert (kind.gpu.memory_gb, kind.gpu_count, kind.price_per_hour) == (64, 2, 2)
    assert load_calibration("measured").efficiency(kind.gpu).mfu == pytest.approx(0.78)


def test_a_card_of_little_power_is_expected_to_hold_less_of_its_peak(tmp_path):
    (tmp_path / "gpus.yaml").write_text(
        "gpus: [{name: x2, memory_gb: 24, bandwidth_gb_per_s: 300, fp16_tflops: 120, link: pcie4,"
        " tdp_watts: 72}]"
    )
    gpu = load_catalogue(tmp_path).gpu("x2")
    assert load_calibration("measured").efficiency(gpu).mfu < 0.5


@pytest.mark.parametrize(
    "text",
    [
        "gpus: [{name: x1}]",
        "gpus: [{name: x1, memory_gb: -1, bandwidth_gb_per_s: 1, fp16_tflops: 1, link: pcie4}]",
        "gpus: [{name: x1, memory_gb: .inf, bandwidth_gb_per_s: 1, fp16_tflops: 1, link: pcie4}]",
        "gpus: [{name: '../x', memory_gb: 1, bandwidth_gb_per_s: 1, fp16_tflops: 1, link: pcie4}]",
        "gpus: !!python/object/apply:os.system ['true']",
        "gpus: [",
        "cpus: []",
    ],
)
def test_a_bad_file_is_refused(tmp_path, text):
    (tmp_path / "gpus.yaml").write_text(text)
    with pytest.raises(InvalidArgument):
        load_catalogue(tmp_path)


def test_an_unknown_type_lists_the_known_ones():
    with pytest.raises(NotFound, match=r"g6e\.xlarge"):
        described(load_catalogue(), instance_type="g7.xlarge")


@pytest.mark.parametrize(
    "fields",
    [
        {"device_type": "l4", "relative_speed": float("nan")},
        {"device_type": "l4", "relative_speed": -1.0},
        {"device_type": "l4", "memory_bytes": -1},
        {"device_type": "l4", "device_count": 65},
        {"device_type": "l4", "price_per_hour": float("inf")},
        {},
    ],
)
def test_absurd_devices_are_refused(fields):
    with pytest.raises(InvalidArgument):
        described(load_catalogue(), **fields)
