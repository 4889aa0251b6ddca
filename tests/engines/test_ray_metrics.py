"""A node serves every metric for Prometheus."""

import time
import urllib.request


def test_all_metrics_are_served_with_role_arm_and_seed(cluster):
    from actors.monitoring import ray_metrics

    (node,) = [node for node in cluster.nodes() if node["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    ray_metrics.begin_arm("flex-dpo", 7)
    ray_metrics.queue_depth("rollout", 12)
    ray_metrics.count_tokens("learner", 30)
    ray_metrics.count_tokens("learner", 12)
    ray_metrics.count_restart("evaluator")
    with ray_metrics.timing_sync():
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


def test_arms_side_by_side_have_their_own_tags():
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    from actors.monitoring import ray_metrics

    both = Barrier(2, timeout=20)

    def tags(arm, seed):
        ray_metrics.begin_arm(arm, seed)
        both.wait()
        return ray_metrics._tags("learner")

    with ThreadPoolExecutor(2) as threads:
        one, other = threads.submit(tags, "dpo", 1), threads.submit(tags, "ppo", 2)
    assert one.result() == {"role": "learner", "arm": "dpo", "seed": "1"}
    assert other.result() == {"role": "learner", "arm": "ppo", "seed": "2"}
