"""Every metric reaches the address at which a node serves them for Prometheus."""

import time
import urllib.request


def test_all_metrics_are_served_with_role_arm_and_seed(cluster):
    from actors.monitoring import ray_metrics as meters

    (node,) = [node for node in cluster.nodes() if node["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    meters.begin_arm("flex-dpo", 7)
    meters.queue_depth("rollout", 12)
    meters.count_tokens("learner", 30)
    meters.count_tokens("learner", 12)
    meters.count_restart("evaluator")
    with meters.timing_sync():
        time.sleep(0.02)
    tags = 'arm="flex-dpo"', 'seed="7"'
    expected = {
        "ray_rlhf_bench_queue_depth{": ("rollout", 12), "ray_rlhf_bench_tokens_total{": ("learner", 42),
        "ray_rlhf_bench_restarts_total{": ("evaluator", 1), "ray_rlhf_bench_sync_seconds_count{": ("rollout", 1),
    }  # fmt: skip
    deadline = time.monotonic() + 60
    while True:
        served = urllib.request.urlopen(address, timeout=10).read().decode().splitlines()
        found = {
            name: float(line.split()[-1])
            for line in served
            for name, (role, _) in expected.items()
            if line.startswith(name) and all(tag in line for tag in (*tags, f'role="{role}"'))
        }
        if found == {name: value for name, (_, value) in expected.items()}:
            return
        assert time.monotonic() < deadline, (found, [line for line in served if "rlhf" in line])
        time.sleep(0.5)


def test_arms_beside_each_other_have_tags_of_their_own():
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    from actors.monitoring import ray_metrics as meters

    both = Barrier(2, timeout=20)

    def tags(arm, seed):
        meters.begin_arm(arm, seed)
        both.wait()
        return meters._tags("learner")

    with ThreadPoolExecutor(2) as threads:
        one, other = threads.submit(tags, "dpo", 1), threads.submit(tags, "ppo", 2)
    assert one.result() == {"role": "learner", "arm": "dpo", "seed": "1"}
    assert other.result() == {"role": "learner", "arm": "ppo", "seed": "2"}
