"""A whole comparison by `python -m rlhf_bench run`: what it writes, and how it ends."""

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rlhf_bench.compute.engine_time import ACTIVITIES
from tests.support.running import Run, begin, end, left_running, run

ROOT = Path(__file__).parents[2]
ARMS = {
    "ppo": ("ppo", "online"), "dpo-offline": ("dpo", "offline"), "dpo-mixed": ("dpo", "chosen_on_policy"),
    "adaptive-online": ("adaptive_flex_dpo", "online"), "ppo-ahead": ("ppo", "online"),
}  # fmt: skip
REGISTERED = "tiny-policies"  # by `compared`
TRIALS = [1e-4, 5e-4]  # the learning rates that every arm tries
COLUMNS = ["flops", "generated_tokens", "trained_tokens", "scored_tokens", "judge_queries", "device_seconds"]
SPLITS = ["in_distribution", "out_of_distribution", "unseen"]
MARKS = [0.0, 0.5, 1.0]


@pytest.fixture(scope="module")
def first(compared) -> Run:
    """A run with an empty cache."""
    return compared


@pytest.fixture(scope="module")
def folder(compared) -> Path:
    """Where that run's cache is: the runs here go on from it."""
    return compared.directory.parents[1]


def test_every_arm_spends_the_budget_to_within_an_update(first):
    limit, metrics, ledger = first.summary["budget"]["limit"], first.table("metrics"), first.table("ledger")
    assert first.summary["budget"]["unit"] == "flops"
    assert set(ledger["arm"]) == {*ARMS, "shared"}
    for arm in ARMS:
        (seed,) = first.summary["arms"][arm]["seeds"]
        spent = seed["spent"]["flops"]
        updates = metrics[(metrics["arm"] == arm) & (metrics["phase"] == "train")]
        assert len(updates) >= 3 and list(updates["update"]) == list(range(1, len(updates) + 1))
        assert updates["flops"].is_monotonic_increasing and updates["flops"].iloc[-1] <= spent <= limit
        assert limit - spent < 1.5 * updates["flops"].diff().max()  # one that did not fit may be longer than all others
        # The columns are the sums of the phases, without those that are metered apart.
        own = ledger[ledger["arm"] == arm]
        phases = own[own["seed"] == 1].set_index("phase")
        charged = phases.drop(index="evaluation")[COLUMNS].sum()
        np.testing.assert_allclose(charged, [seed["spent"][c] for c in COLUMNS], rtol=1e-9)
        assert phases.loc["evaluation", "flops"] > 0
        # The reward model is paid for by the one arm that asks it.
        assert ("reward_model" in phases.index) == (arm == "ppo")
        assert ("judging" in phases.index) == (arm in ("dpo-mixed", "adaptive-online", "ppo-ahead"))
        assert ("rollout" in phases.index) == (arm != "dpo-offline")
        # Trials are metered apart, under their own seed: as many for every arm, each within its share of the budget.
        trials = own[own["phase"] == "tuning"]
        assert list(trials["seed"]) == [0] * len(TRIALS) and (trials["flops"] <= 0.4 * limit).all()
        assert (trials["trained_tokens"] > 0).all()
    assert ledger.set_index("arm").loc["shared", "flops"] > 0


def test_the_summary_has_what_its_readers_rely_on(first):
    summary = first.summary
    assert summary["recipe"]["name"] == "tiny" and list(summary["arms"]) == list(ARMS)
    assert 0 <= summary["base"]["score"] <= 1
    for name, arm in summary["arms"].items():
        assert (arm["method"], arm["data"]) == ARMS[name]
        (seed,) = arm["seeds"]
        assert (seed["seed"], seed["status"]) == (1, "done") and sorted(seed["spent"]) == sorted(COLUMNS)
        assert 0 <= seed["score"] <= 1 and np.isfinite(seed["kl"]) and seed["stability"]["drawdown"] >= 0
        assert arm["score"]["mean"] == arm["score"]["iqm"] == seed["score"] and arm["score"]["ci95"] is None
    assert 0 < summary["timing"]["first_update_seconds"] < summary["timing"]["wall_seconds"]
    assert all(arm in first.said for arm in ARMS)
    assert first.said.strip().splitlines()[-1] == f"report: {first.directory / 'report.html'}"
    report = (first.directory / "report.html").read_text()
    assert all(arm in report for arm in ARMS)


def test_wall_time_is_divided_among_what_the_engines_were_at(first):
    recorded = json.loads((first.directory / "results.json").read_text())
    for arm, found in recorded["arms"].items():
        (seconds,) = (seed["seconds"] for seed in found["seeds"])
        assert set(seconds) <= {*ACTIVITIES, "driver"} and {"learning", "evaluation", "driver"} <= set(seconds), arm
        assert ("rollout" in seconds) == (arm != "dpo-offline") and min(seconds.values()) >= 0
        assert seconds["driver"] < 0.5 * sum(seconds.values())
    before = recorded["timing"]["before_arms"]
    assert {"starting", "loading", "learning", "rollout", "evaluation"} <= set(before)
    assert sum(before.values()) < recorded["timing"]["wall_seconds"] < first.seconds
    assert "Where the time went" in (first.directory / "report.html").read_text()


def test_a_profile_shows_every_process_on_one_time_axis(first):
    events = json.loads((first.directory / "profile.json").read_text())["traceEvents"]
    tracks = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert sorted(tracks.values()) == [
        "driver: engines at work, as it saw them",
        "evaluator 0",
        "learner 0",
        "rollout 0",
        "scorer 0",
    ]
    calls = {name: [e for e in events if e["ph"] == "X" and tracks[e["pid"]] == name] for name in tracks.values()}
    names = {track: {e["name"].split(" ")[0] for e in found} for track, found in calls.items()}
    assert names["rollout 0"] == {"start", "advance", "probe", "load_weights"}
    assert names["scorer 0"] == {"start", "load", "score"}
    assert {"start", "join", "load", "measure", "steps", "weights", "save"} <= names["learner 0"]
    one, other = (next(e for e in calls[role] if e["name"] == "start") for role in ("rollout 0", "evaluator 0"))
    assert max(one["ts"], other["ts"]) < min(e["ts"] + e["dur"] for e in (one, other))  # both engines start at once
    assert all(0 <= e["ts"] and e["ts"] + e["dur"] <= 1e6 * first.seconds for found in calls.values() for e in found)
    # What an actor says of its own calls lies within what the driver saw of them, to a few milliseconds.
    seen = [
        (e["ts"], e["ts"] + e["dur"])
        for e in calls["driver: engines at work, as it saw them"]
        if e["name"] == "rollout"
    ]
    for e in calls["rollout 0"]:
        if e["name"] == "advance" and e["dur"] > 1e4:
            covered = sum(max(0, min(stop, e["ts"] + e["dur"]) - max(start, e["ts"])) for start, stop in seen)
            assert covered > 0.5 * e["dur"]


def test_an_arm_that_draws_ahead_weighs_its_samples(first):
    rows = first.table("metrics")
    own = {arm: rows[(rows["arm"] == arm) & (rows["phase"] == "train")] for arm in ("ppo", "ppo-ahead")}
    assert own["ppo"]["importance"].isna().all()
    ahead = own["ppo-ahead"]
    assert ahead["importance"].iloc[0] == pytest.approx(1, abs=1e-3)  # sampled by the very policy that learns
    assert (ahead["importance"] > 0.5).all() and (ahead["importance"] < 2).all()


def test_the_tables_hold_every_update_and_every_look(first):
    metrics, samples = first.table("metrics"), first.table("samples")
    always = ["loss", "grad_norm", "entropy", "policy_version_lag", *COLUMNS, "wall_seconds"]
    pairs = ["chosen_logprob", "rejected_logprob", "margin", "accuracy"]
    sampled = ["reward", "gold", "response_length", "policy_version_lag"]
    for arm, (method, data) in ARMS.items():
        own = metrics[metrics["arm"] == arm]
        updates = own[own["phase"] == "train"]
        wanted = (
            always
            + (pairs if method != "ppo" else ["kl", "critic_loss", "sample_logprob"])
            + (sampled if data == "online" else [])
        )
        assert np.isfinite(updates[wanted].to_numpy(dtype=float)).all(), arm
        lag = updates["policy_version_lag"]
        behind = [0] + [1] * (len(lag) - 1) if arm == "ppo-ahead" else [0] * len(lag)
        assert list(lag) == (behind if data == "online" else list(range(len(lag))))
        looks = own[own["phase"] == "evaluation"]
        assert sorted(zip(looks["mark"], looks["split"], strict=True)) == [(m, s) for m in MARKS for s in SPLITS]
        main = looks[looks["split"] == "in_distribution"].set_index("mark")
        assert np.isfinite(main[["kl", "margin", "chosen_logprob", "score"]].to_numpy(dtype=float)).all()
        (seed,) = first.summary["arms"][arm]["seeds"]
        assert main.loc[1.0, "score"] == seed["score"] and main.loc[1.0, "flops"] == seed["spent"]["flops"]
        assert main.loc[0.0, "score"] == first.summary["base"]["score"] and main.loc[0.5, "fraction"] >= 0.5
        shown = samples[(samples["arm"] == arm) & (samples["mark"] == 1.0)]
        base = samples[samples["arm"] == "base"]
        assert len(shown) == 12 and list(shown["prompt_id"]) == list(base["prompt_id"])  # 4 of each split, side by side
    assert (
        metrics[metrics["mark"] == 0.0].groupby("split")["score"].nunique().eq(1).all()
    )  # all begin at the same place


def test_every_arm_went_on_with_the_best_of_its_trials(first):
    kept = json.loads((first.directory / "tuning.json").read_text())
    assert kept.keys() == ARMS.keys()
    for arm, trials in kept.items():
        assert [t["settings"]["learning_rate"] for t in trials] == TRIALS and {t["status"] for t in trials} == {"done"}
        best = max(trials, key=lambda t: t["score"])["settings"]["learning_rate"]  # the first of equals
        assert f"{arm}: continues with learning_rate {best:g}" in first.errors
        assert f"{arm}: trial 2 of 2" in first.errors


def test_a_schedule_follows_the_budget_and_an_adaptive_strength_stays_in_its_range(first):
    updates = first.table("metrics").query("phase == 'train'")
    scheduled = updates[updates["arm"] == "dpo-offline"]
    assert scheduled["beta"].is_monotonic_increasing and scheduled["beta"].iloc[0] == 0.1
    # Taken as the update begins: what the update before had spent.
    beta, fraction = scheduled["beta"].to_numpy(), scheduled["fraction"].to_numpy()
    np.testing.assert_allclose(beta[1:], 0.1 + 0.2 * fraction[:-1], rtol=1e-9)
    adapted = updates[updates["arm"] == "adaptive-online"]["state/beta_rejected"]
    assert (
        adapted.between(0.01, 0.1 + 1e-12).all() and adapted.iloc[0] == adapted.iloc[1]
    )  # measured in every second update
    ledger = first.table("ledger").set_index(["arm", "seed", "phase"])["flops"]
    assert ledger["adaptive-online", 1, "measuring"] > 0


def test_every_look_has_its_diagnostics_and_every_held_out_pair_its_row(first):
    metrics, pairs = first.table("metrics"), first.table("pairs")
    looks = metrics[(metrics["phase"] == "evaluation") & (metrics["split"] == "in_distribution")]
    numbers = ["displaced", "accuracy/unseen", "accuracy/out_of_distribution", "probe/base_samples", "probe/base_samples_logratio",
               "argmax_confidence", "gradient/chosen_norm", "gradient/falling", "ches", "diagnostics/flops"]  # fmt: skip
    assert np.isfinite(looks[numbers].to_numpy(dtype=float)).all()
    has_loss = looks["method"] != "ppo"
    assert (
        np.isfinite(looks[has_loss]["partial/pi_log_ratio"]).all()
        and looks[~has_loss]["partial/pi_log_ratio"].isna().all()
    )

    # Beside the fixed pairs, those among the base policy's own samples: of the kinds that these arms train on.
    kinds = {"on_policy", "on_policy_by_reward_model"}
    assert (
        kinds < set(pairs["kind"]) and looks[looks["arm"] != "dpo-mixed"]["own/margin"].notna().all()
    )  # too few prompts
    pairs = pairs[pairs["kind"] == "fixed"]
    base = pairs[pairs["arm"] == "base"]
    assert set(base["split"]) == set(SPLITS) and (base["seed"] == 0).all() and (base["mark"] == 0).all()
    assert base["pair_id"].is_unique and base["reward_margin"].notna().all()  # PPO has a reward model made
    np.testing.assert_array_equal(base[["chosen_logratio", "rejected_logratio"]], 0)
    same = [
        "split",
        "pair_id",
        "ches",
        "ches_normalised",
        "edit_distance",
        "chosen_tokens",
        "rejected_tokens",
        "reward_margin",
    ]
    for arm in ARMS:
        own = pairs[pairs["arm"] == arm]
        assert sorted(own["mark"].unique()) == MARKS and set(own["seed"]) == {1}
        for mark in MARKS:
            look = own[own["mark"] == mark]
            pd.testing.assert_frame_equal(look[same].reset_index(drop=True), base[same].reset_index(drop=True))
            main = look[look["split"] == "in_distribution"]
            (told,) = looks[(looks["arm"] == arm) & (looks["mark"] == mark)]["margin"]
            np.testing.assert_allclose((main["chosen_logratio"] - main["rejected_logratio"]).mean(), told, atol=1e-5)
        assert (own[own["mark"] == 1.0]["chosen_logratio"] != 0).any()


def test_mlflow_shows_a_parent_and_a_child_per_arm(first):
    from mlflow.tracking import MlflowClient

    store = MlflowClient(tracking_uri=f"sqlite:///{first.directory.parent / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("tiny").experiment_id
    runs = store.search_runs([experiment], f"tags.run_key = '{first.summary['run_key']}'")
    parent = next(r for r in runs if r.info.run_name == "comparison")
    children = {r.data.tags["rlhf_bench.arm"]: r for r in runs if r is not parent}
    assert len(runs) == 1 + len(ARMS) and children.keys() == ARMS.keys()
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert {"report.html", "summary.json", "samples.parquet", "pairs.parquet"} <= {
        f.path for f in store.list_artifacts(parent.info.run_id)
    }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    metrics = first.table("metrics")
    for arm, (method, data) in ARMS.items():
        child = children[arm]
        tags = {
            "method": method,
            "data": data,
            "seed": "1",
            "commit": commit,
            "recipe": "tiny",
            "mlflow.parentRunId": parent.info.run_id,
        }
        assert child.data.tags.items() >= tags.items()
        assert child.data.params["arm/method"] == method and float(child.data.params["arm/learning_rate"]) > 0
        updates = metrics[(metrics["arm"] == arm) & (metrics["phase"] == "train")]
        for key, column in (
            ("train/loss", "loss"),
            ("budget/flops", "flops"),
            ("budget/generated_tokens", "generated_tokens"),
        ):
            points = store.get_metric_history(child.info.run_id, key)
            assert [p.step for p in points] == list(updates["update"])
            np.testing.assert_array_equal([p.value for p in points], updates[column])
        final = store.get_metric_history(child.info.run_id, "score/in_distribution")[-1]
        assert final.value == first.summary["arms"][arm]["seeds"][0]["score"]


def test_mlflow_has_descriptions_data_curves_by_compute_and_tokens_and_the_policies(first):
    import mlflow
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{first.directory.parent / 'mlflow.db'}"
    store = MlflowClient(tracking_uri=uri)
    experiment = store.get_experiment_by_name("tiny").experiment_id
    runs = store.search_runs([experiment], f"tags.run_key = '{first.summary['run_key']}'")
    parent = next(r for r in runs if r.info.run_name == "comparison")
    note = parent.data.tags["mlflow.note.content"]
    assert all(f"| {arm} |" in note for arm in ARMS) and f"/runs/{parent.info.run_id}/artifacts/recipe.yaml)" in note
    used = {one.dataset.name: one.dataset.digest for one in parent.inputs.dataset_inputs}
    assert {"demonstrations", "train_prompts", "off_policy_pairs", "held_out_prompts_unseen"} <= used.keys()
    assert [name for name in parent.data.metrics if name.startswith("system/") and name.endswith("usage_percentage")]

    metrics = first.table("metrics")
    for child in (r for r in runs if r is not parent):
        arm = child.data.tags["rlhf_bench.arm"]
        assert f"score {first.summary['arms'][arm]['seeds'][0]['score']:.3f}" in child.data.tags["mlflow.note.content"]
        own = {one.dataset.name: one.dataset.digest for one in child.inputs.dataset_inputs}
        assert own.items() <= used.items() and ("train_prompts" in own) == (arm != "dpo-offline")
        looks = metrics[(metrics["arm"] == arm) & (metrics["split"] == "in_distribution")]
        for prefix, steps in (
            ("by_budget_permille", (1000 * looks["fraction"]).round()),
            ("by_tokens", looks["generated_tokens"] + looks["trained_tokens"]),
        ):
            points = store.get_metric_history(child.info.run_id, f"{prefix}/score/in_distribution")
            assert [(p.step, p.value) for p in points] == list(zip(steps.astype(int), looks["score"], strict=True))

    versions = store.search_model_versions(f"name = '{REGISTERED}'")
    assert {v.run_id for v in versions} == {r.info.run_id for r in runs if r is not parent}
    aliases = store.get_registered_model(REGISTERED).aliases
    assert aliases.keys() == {"best", *ARMS, *(f"{arm}-seed1" for arm in ARMS)}
    version = store.get_model_version_by_alias(REGISTERED, "ppo")
    kept = first.directory / "checkpoints" / "ppo" / "seed-1"
    mlflow.set_tracking_uri(uri)
    try:
        fetched = Path(mlflow.artifacts.download_artifacts(f"models:/{REGISTERED}/{version.version}"))
    finally:
        mlflow.set_tracking_uri(None)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (fetched / name).read_bytes() == (kept / name).read_bytes()


def test_finished_policies_are_hugging_face_folders(first):
    from huggingface_hub import ModelCard
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = []
    for arm in ARMS:
        path = first.directory / "checkpoints" / arm / "seed-1"
        assert (
            AutoTokenizer.from_pretrained(path).decode(AutoTokenizer.from_pretrained(path)("1+2=").input_ids) == "1+2="
        )
        embedding = AutoModelForCausalLM.from_pretrained(path).get_input_embeddings().weight.detach().numpy()
        assert np.isfinite(embedding).all() and not any(np.array_equal(embedding, other) for other in weights)
        weights.append(embedding)
        card, (seed,) = ModelCard.load(path / "README.md"), first.summary["arms"][arm]["seeds"]
        assert card.data.tags[:2] == ["rlhf-bench", first.summary["arms"][arm]["method"].replace("_", "-")]
        assert f"| Score on held-out prompts | {seed['score']:.3f} |" in card.text
    assert sorted(p.name for p in (first.directory / "checkpoints").iterdir()) == sorted(ARMS)


def test_the_same_command_again_repeats_nothing(first, tiny, folder, environment):
    kept = [p for part in ("parts", "checkpoints") for p in (first.directory / part).rglob("*") if p.is_file()]
    kept = [p for p in kept if p.name != "README.md"]  # a card shows the recipe as it is now, as the report does
    before = {p: p.stat().st_mtime_ns for p in [*kept, *(folder / "cache").rglob("*.safetensors")]}
    events, summary = (first.directory / "events.log").read_text(), first.summary
    again = run(tiny, first.directory, environment, folder / "again.log", "--quiet", "--json")
    assert again.code == 0, again.errors
    assert {p: p.stat().st_mtime_ns for p in before} == before
    said = (first.directory / "events.log").read_text().removeprefix(events)
    assert said.count("already done, kept") == len(ARMS) and "fine-tuning" not in said and "begins" not in said
    assert "trial 1 of" not in said and said.count("continues with") == len(ARMS)
    assert json.loads(again.said) == {"output": str(first.directory)} | again.summary  # and nothing beside it
    assert again.errors == ""
    assert again.summary["arms"] == summary["arms"] and again.summary["run_key"] == summary["run_key"]


def test_secrets_of_the_environment_are_written_nowhere(first, folder, environment):
    """Records, report, log, profile, cache, MLflow's store and artifacts."""
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {"mlflow.db", "report.html", "events.log", "profile.json"} <= {path.name for path in written}
    assert [path for path in written if b"not-to-be-written" in path.read_bytes()] == []
    assert sum("not-to-be-written" in value for value in environment.values()) == 3


def test_an_arms_failure_is_its_own(first, tiny, folder, environment):
    """No pair is so far apart as the one arm wants them: the other one is done, shown and recorded."""
    more = ("tuning=null", "arms.dpo-mixed.edit_distance=[0.999, 1.0]", "--arm=dpo-mixed", "--arm=dpo-offline")
    failed = run(tiny, folder / "out" / "failed", environment, folder / "failed.log", *more)
    cause = "edit_distance: no pair's sides lie between 0.999 and 1.0 apart; widen the interval"
    assert f"dpo-mixed · seed 1: failed: {cause}; the other arms continue" in failed.errors
    assert failed.code == 1 and "Traceback" not in failed.errors
    last = failed.errors.strip().splitlines()[-1]
    assert last.startswith(f"failed: dpo-mixed · seed 1: {cause}; the other arms are done: ")
    assert [s["status"] for s in failed.summary["arms"]["dpo-offline"]["seeds"]] == ["done"]
    (lost,) = failed.summary["arms"]["dpo-mixed"]["seeds"]
    assert (lost["seed"], lost["status"], lost["score"]) == (1, "failed", None)
    page = (failed.directory / "report.html").read_text()
    assert "dpo-mixed: seed 1 (failed) did not finish; no score can be given." in page
    assert "dpo-offline" in page and set(failed.table("metrics")["arm"]) == {"dpo-offline"}


def test_nothing_is_left_after_a_normal_end(folder):
    assert left_running(f"COMPARED_RUN={folder}") == []


def test_a_stop_while_the_engines_start_is_in_order_too(tiny, folder, environment):
    from mlflow.tracking import MlflowClient

    directory, log, began = folder / "early" / "out", folder / "early.log", time.monotonic()
    process = begin(tiny, directory, environment, log)
    events = directory / "events.log"
    while not (events.exists() and "starting the engines" in events.read_text()):
        assert process.poll() is None and time.monotonic() - began < 200, Path(f"{log}.err").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stopped = end(process, directory, log, began)
    assert stopped.code == 128 + signal.SIGINT, stopped.errors
    assert "the same command with the same --output resumes" in stopped.errors.strip().splitlines()[-1]
    store = MlflowClient(tracking_uri=f"sqlite:///{folder / 'early' / 'mlflow.db'}")
    (parent,) = store.search_runs([store.get_experiment_by_name("tiny").experiment_id])
    assert parent.info.status == "KILLED"
