"""How busy a machine is."""

import math

from actors.monitoring import node_load


def test_processor_and_memory_of_this_machine():
    node_load.begin()
    load = node_load.node_load()
    assert 0 <= load["cpu_utilization_percentage"] <= 100 and 0 < load["system_memory_usage_percentage"] <= 100
    assert load["system_memory_usage_megabytes"] > 0 and all(map(math.isfinite, load.values()))


def test_the_output_of_nvidia_smi_is_parsed_without_unknown_numbers():
    assert node_load.parsed("0, 37, 1024, 81559\n1, [N/A], 2048, 81559\n") == {
        "gpu_0_utilization_percentage": 37.0, "gpu_0_memory_usage_megabytes": 1024.0,
        "gpu_0_memory_total_megabytes": 81559.0,
        "gpu_1_memory_usage_megabytes": 2048.0, "gpu_1_memory_total_megabytes": 81559.0,
    }  # fmt: skip
    assert node_load.parsed("") == {}
