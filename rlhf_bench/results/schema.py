"""Every file in a comparison's directory DIR: its name, what it holds, and its columns or keys with units.

Writer, reader, archive, MLflow and report take names from here; docs/output_files.md is made of it. What is recorded of
updates and evaluations beyond the keys stands in `rlhf_bench.results.metrics`, `summary.json` in `summary_json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from rlhf_bench.core.costs import COLUMNS
from rlhf_bench.core.costs import Column as CostColumn
from rlhf_bench.core.lock import LOCK
from rlhf_bench.recipe.recipe import RESERVED
from rlhf_bench.results.metrics import UPDATE_METRICS

Status = Literal["done", "diverged", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)

BASE, SHARED = RESERVED
"""The name under which samples and pairs of the base policy are recorded; and the ledger's name for stages charged to no arm,
such as supervised fine-tuning."""


def base_at(temperature: float) -> str:
    """The name under which scores of the base policy at another temperature are recorded."""
    return f"{BASE} at temperature {temperature:g}"


RECIPE, BASE_JSON, RESULTS, TUNING, SUMMARY = "recipe.yaml", "base.json", "results.json", "tuning.json", "summary.json"
REPORT, SERIES, SERIES_FIGURE, DATA_DIGEST, FIRST_DAY, GIVEN = (
    "report.html",
    "series.json",
    "series.png",
    "data_digest",
    "first_day",
    "given.json",
)
MLFLOW, BENCHMARKS = "mlflow.json", "benchmarks.json"
PARTS, RESULT, CHECKPOINTS, CARD, OUTBOX = "parts", "result.json", "checkpoints", "README.md", "tracking.jsonl"
CHECKSUMS, RUN_KEY = "checksums.json", "run_key"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, or a key of a JSON file. The reader refuses a table without a `required` one."""

    name: str
    type: Literal["text", "integer", "number"]
    unit: str
    meaning: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A Parquet file. A column that a row has no value for is null there."""

    name: str
    meaning: str
    columns: tuple[Column, ...]

    @property
    def file(self) -> str:
        return f"{self.name}.parquet"

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that are always written, in their order."""
        return tuple(column.name for column in self.columns)

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.required)


@dataclass(frozen=True, slots=True)
class JsonFile:
    """A JSON file by the paths of its keys: words in capitals stand for any key, `[]` for every entry of a list."""

    name: str
    meaning: str
    keys: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class File:
    """Any other file or folder. Words in capitals stand for a name or number of the run."""

    path: str
    meaning: str


_COST_MEANINGS: dict[CostColumn, tuple[str, str]] = {
    "flops": ("FLOP", "floating-point operations of all models, counted from shapes"),
    "generated_tokens": ("tokens", "response tokens that were sampled"),
    "trained_tokens": ("tokens", "response tokens in optimizer steps, once for each pass and model"),
    "scored_tokens": ("tokens", "tokens that forward passes measured or that the reward model scored"),
    "judge_queries": ("queries", "responses that the judge scored"),
    "device_seconds": ("s", "seconds that a role was busy, times its devices"),
}
_ARM = Column("arm", "text", "", "name of the arm")
_SEED = Column("seed", "integer", "", "seed of the arm's run")
_MARK = Column("mark", "number", "share of the budget", "point at which the evaluation was due; 0 is the base policy")
_UPDATE = Column("update", "integer", "updates", "weight updates so far")
_SPLIT = Column("split", "text", "", "held-out split: in_distribution, out_of_distribution or unseen")


def _costs(spent: str, required: bool = True) -> tuple[Column, ...]:
    return tuple(
        Column(name, "number", _COST_MEANINGS[name][0], f"{_COST_MEANINGS[name][1]}, {spent}", required)
        for name in COLUMNS
    )


METRICS_TABLE = Table(
    "metrics",
    "A row for every update (`phase` train), and for every evaluation and split (`phase` evaluation).",
    (
        _ARM,
        Column("method", "text", "", "the arm's method", required=False),
        Column("data", "text", "", "the arm's kind of data", required=False),
        _SEED,
        Column("phase", "text", "", "train or evaluation"),
        _SPLIT,
        _UPDATE,
        Column("fraction", "number", "share of the budget", "what had been spent"),
        _MARK,
        *_costs("so far", required=False),
        Column("wall_seconds", "number", "s", "wall time of this arm and seed so far", required=False),
        Column("score", "number", "0 to 1", "score at the sampling temperature, mean over prompts; evaluations only"),
    ),
)
SAMPLES_TABLE = Table(
    "samples",
    "Responses at every evaluation to the first prompts of each split, for the report; the base policy's first.",
    (
        _ARM,
        _SEED,
        _MARK,
        _SPLIT,
        Column("prompt_id", "text", "", "the prompt's name"),
        Column("prompt", "text", "", "the prompt"),
        Column("reference", "text", "", "what the judge compares with"),
        Column("response", "text", "", "what the policy wrote"),
        Column("score", "number", "0 to 1", "the judge's score of it"),
    ),
)
SCORES_TABLE = Table(
    "scores",
    "A row for every held-out prompt at every evaluation; the base policy's first, also at other temperatures.",
    (
        _ARM,
        _SEED,
        _MARK,
        _SPLIT,
        Column("prompt_id", "text", "", "the prompt's name"),
        Column("score", "number", "0 to 1", "mean score of its sampled responses, or the expected score"),
        Column("greedy_score", "number", "0 to 1", "score of its greedy response"),
        Column(
            "best_of_score",
            "number",
            "0 to 1",
            "expected best score among n responses; null where not asked for",
            False,
        ),
    ),
)
LEDGER_TABLE = Table(
    "ledger",
    "What each arm and seed spent by phase; what the shared stages spent is under `shared`. [Identical compute](compute.md) says how it is counted.",
    (_ARM, _SEED, Column("phase", "text", "", "what the compute was for"), *_costs("in this phase")),
)
PAIRS_TABLE = Table(
    "pairs",
    "A row for every held-out pair at every evaluation; the base policy's first.",
    (
        _ARM,
        _SEED,
        _MARK,
        Column("update", "integer", "updates", "weight updates so far", required=False),
        _SPLIT,
        Column("pair_id", "text", "", "the pair's name"),
        Column("chosen_logprob", "number", "nats", "log-probability of the chosen response", required=False),
        Column("rejected_logprob", "number", "nats", "log-probability of the rejected response", required=False),
        Column("chosen_logratio", "number", "nats", "Δ⁺: that of the chosen response less the base policy's"),
        Column("rejected_logratio", "number", "nats", "Δ⁻: that of the rejected response less the base policy's"),
        Column("chosen_tokens", "integer", "tokens", "length of the chosen response", required=False),
        Column("rejected_tokens", "integer", "tokens", "length of the rejected response", required=False),
        Column("ches", "number", "", "CHES of the pair under the base policy", required=False),
        Column("ches_normalised", "number", "", "CHES per token", required=False),
        Column("edit_distance", "number", "0 to 1", "edit distance of both responses", required=False),
        Column("kind", "text", "", "fixed, or a kind that arms train on: see arms.ARM.own_kind", required=False),
        Column("reward_margin", "number", "reward", "the reward model's margin, where there is one", required=False),
    ),
)
TABLES = {table.name: table for table in (METRICS_TABLE, SAMPLES_TABLE, SCORES_TABLE, LEDGER_TABLE, PAIRS_TABLE)}
"""Of the whole comparison, and of each of its parts."""

ARCHIVED_UPDATE_COLUMNS = (
    *(key for key in METRICS_TABLE.keys if key not in (*COLUMNS, "wall_seconds")),
    *(metric.name for metric in UPDATE_METRICS if metric.reported),
)
"""What the report reads of a training update."""

_SPENT = Column("spent.COLUMN", "number", "see ledger", "what it spent, by column of the ledger")
RESULT_KEYS = (
    Column("seed", "integer", "", "the seed"),
    Column("status", "text", "", "done, diverged (too many updates skipped) or failed"),
    _SPENT,
    Column("score", "number", "0 to 1", "final score on the main split; null where there is none"),
    Column("greedy_score", "number", "0 to 1", "final score of the most likely tokens on the main split"),
    Column("kl", "number", "nats", "final KL to the base policy"),
    Column("updates", "integer", "updates", "weight updates"),
    Column("seconds.ACTIVITY", "number", "s", "wall time by what engines were doing; `driver`: no engine was busy"),
    Column("weights", "text", "", "SHA-256 of the finished policy's weights; older runs have none"),
    Column("cause", "text", "", "why it failed; only where it did"),
)
BASE_KEYS = (
    Column("score.SPLIT", "number", "0 to 1", "the base policy's score on a held-out split"),
    Column("greedy_score.SPLIT", "number", "0 to 1", "that of its most likely tokens"),
    Column("best_of_score.SPLIT", "number", "0 to 1", "the expected best of n responses, where asked for"),
    Column("numbers.METRIC", "number", "see metrics", "its other evaluation metrics"),
    Column(
        "weights",
        "text",
        "",
        "SHA-256 of its weights: of one file, what `sha256sum` prints; older runs have none",
    ),
    Column("at_temperature.TEMPERATURE.KIND.SPLIT", "number", "0 to 1", "the same scores at another temperature"),
    Column("at_temperature.TEMPERATURE.numbers.METRIC", "number", "see metrics", "KL and entropy there"),
    Column("reward_model.accuracy", "number", "share", "main-split pairs that the reward model ranks right"),
    Column("reward_model.accuracies.SPLIT", "number", "share", "the same of every split"),
    Column(
        "reward_model.scale", "number", "", "its scores as a multiple of its own unit, log-odds; older runs have none"
    ),
    Column("gold_reward_model.accuracy", "number", "share", "the same of the gold reward model, where there is one"),
    Column("gold_reward_model.accuracies.SPLIT", "number", "share", "the same of every split"),
    Column("gold_reward_model.scale", "number", "", "the same as of the reward model"),
    Column("setup.off_policy_pairs", "integer", "pairs", "off-policy pairs to train on"),
    Column("setup.held_out_pairs", "text", "pairs", "held-out pairs of each split"),
    Column("setup.own_pairs", "text", "pairs", "held-out pairs of each other kind that an arm trains on"),
    Column("setup.notes[]", "text", "", "what the data or the probe sets had to leave out"),
)
JSON_FILES = (
    JsonFile(
        BASE_JSON,
        "The base policy, and what was prepared before the arms. Where each seed has a base policy of its own "
        "(`sft.seed_follows`), each of them under `seeds`, and above them means, the fewest pairs, and all notes.",
        (
            *BASE_KEYS,
            *(Column(f"seeds.SEED.{key.name}", key.type, key.unit, key.meaning) for key in BASE_KEYS),
        ),
    ),
    JsonFile(
        RESULTS,
        "Every arm and seed that has ended, and the run itself. Written again after each of them.",
        (
            Column("arms.ARM.method", "text", "", "the arm's method"),
            Column("arms.ARM.data", "text", "", "the arm's kind of data"),
            Column(
                "arms.ARM.own_kind",
                "text",
                "",
                "kind of the [pairs](diagnostics.md#pairs-of-the-arms-own-kind) of own/…",
            ),
            *(Column(f"arms.ARM.seeds[].{key.name}", key.type, key.unit, key.meaning) for key in RESULT_KEYS),
            Column("timing.wall_seconds", "number", "s", "wall time of the last run into this directory"),
            Column("timing.driver_share", "number", "share", "of the fleets' time, that in which no engine was busy"),
            Column("timing.fleets", "integer", "fleets", "fleets that trained arms at the same time"),
            Column("timing.first_update_seconds", "number", "s", "from the start to the first update of an arm"),
            Column("timing.before_arms.ACTIVITY", "number", "s", "wall time of the first fleet before the arms"),
            Column("run_key", "text", "", "the comparison's key in MLflow"),
            Column("commit", "text", "", "commit of rlhf-bench"),
            Column("machine", "text", "", "machines of the run"),
            Column("versions.PACKAGE", "text", "", "version of rlhf-bench, Python, and each package that computes"),
            Column("threads.ROLE", "text", "threads", "with how many each process of a role computes"),
        ),
    ),
    JsonFile(
        MLFLOW,
        "What MLflow lacks of the run, once it has ended; `rlhf-bench track DIR` sends it.",
        (
            Column("store", "text", "", "MLflow's address, without a password"),
            Column("lacks[]", "text", "", "a thing that it did not get, and why; none where it has all"),
        ),
    ),
    JsonFile(
        TUNING,
        "Trials before the comparison, where the recipe asks for them.",
        (
            Column("ARM[].settings.SETTING", "number", "", "what the trial set"),
            Column(
                "ARM[].score",
                "number",
                "0 to 1",
                "score on the tuning prompts, mean over seeds; NaN where one has none",
            ),
            Column("ARM[].status", "text", "", "done, diverged or failed"),
            Column("ARM[].spent.COLUMN", "number", "see ledger", "what the trial spent, by column of the ledger"),
            Column("ARM[].runs[].seed", "integer", "", "one of the trial's seeds"),
            Column("ARM[].runs[].score", "number", "0 to 1", "its score with that seed"),
            Column("ARM[].runs[].status", "text", "", "done, diverged or failed"),
            Column("ARM[].runs[].spent.COLUMN", "number", "see ledger", "what it spent with that seed"),
        ),
    ),
    JsonFile(
        BENCHMARKS,
        "What `rlhf-bench evaluate` has measured by lm-eval: a row for every number of every policy. Written again after each.",
        (
            Column("rows[].arm", "text", "", "name of the arm, or base"),
            Column("rows[].seed", "integer", "", "seed of the arm's run; of a base policy that all seeds share 0"),
            Column(
                "rows[].weights",
                "text",
                "",
                "SHA-256 of the policy's weights; a number of other weights does not count",
            ),
            Column(
                "rows[].benchmark", "text", "", "name that was asked for: a task of lm-eval, or a group or tag of them"
            ),
            Column("rows[].digest", "text", "", "of lm-eval's version, and the benchmark's configuration and prompts"),
            Column("rows[].task", "text", "", "the task, or the group whose mean it is"),
            Column("rows[].metric", "text", "", "lm-eval's name of the number"),
            Column("rows[].filter", "text", "", "lm-eval's filter of the responses; none: they are taken as they are"),
            Column("rows[].value", "number", "see metric", "the number"),
            Column(
                "rows[].standard_error", "number", "see metric", "its standard error over prompts; null without one"
            ),
            Column("rows[].prompts", "integer", "prompts", "prompts that were asked"),
            Column("rows[].shots", "integer", "", "examples in each prompt; null where they differ within a group"),
            Column("rows[].higher_is_better", "text", "", "true or false; null where lm-eval does not say"),
            Column("rows[].version", "text", "", "the task's version in lm-eval"),
            Column("rows[].lm_eval", "text", "", "version of lm-eval"),
        ),
    ),
    JsonFile(
        SERIES,
        "Of a series (`vary` in the recipe): its comparisons, each in the folder LABEL, and their results.",
        (
            Column("labels[]", "text", "", "KEY=VALUE of each comparison"),
            Column("rows[].label", "text", "", "the comparison"),
            Column("rows[].arm", "text", "", "the arm"),
            Column("rows[].base", "number", "0 to 1", "the base policy's score"),
            Column("rows[].score", "number", "0 to 1", "the arm's mean score over finished seeds"),
            Column("rows[].gain", "number", "0 to 1", "the arm's score less the base policy's"),
            Column("rows[].low", "number", "0 to 1", "lower end of the score's 95% interval"),
            Column("rows[].high", "number", "0 to 1", "upper end of the score's 95% interval"),
            Column("rows[].kl", "number", "nats", "mean final KL over finished seeds"),
            Column("rows[].seeds", "integer", "seeds", "finished seeds"),
        ),
    ),
)

FILES = (
    File(RECIPE, "The recipe with every key, as it was run."),
    File(SUMMARY, "The numbers of the report, for scripts. `rlhf-bench run --json` prints the same."),
    File(REPORT, "The report: one page that loads nothing."),
    File("checkpoints/ARM/seed-SEED/", f"The finished policy in Hugging Face's format, and its model card {CARD}."),
    File("events.log", "Every line that the run printed, with its time."),
    File(f"parts/ARM-seedSEED/{RESULT}", "Of an arm and seed: what results.json has of it. Marks it as complete."),
    File("parts/ARM-seedSEED/TABLE.parquet", "Its rows of the five tables."),
    File(
        f"parts/ARM-seedSEED/{CHECKSUMS}",
        "SHA-256, length and time of its files and of its policy's, by their paths in DIR: `rlhf-bench verify` and every "
        "later run into DIR compare them.",
    ),
    File(
        "state/ARM-seedSEED/round-ROUND/",
        "Checkpoint of an arm in progress, unless `reliability.checkpoint_place` moves it.",
    ),
    File("state/samples-seedSEED-DIGEST.json", "Samples of the base policy, until no arm needs them any more."),
    File("trouble/ARM-seedSEED-updateUPDATE.json", "Data of a skipped update: at most ten for an arm and seed."),
    File(OUTBOX, "What MLflow has not received yet, or has refused; empty or absent when it has all."),
    File(
        LOCK,
        "Held by the command that works in DIR: its process, host and since when; empty after an end in good order.",
    ),
    File(RUN_KEY, "Key of the comparison in MLflow: the same for every run into this directory."),
    File(DATA_DIGEST, "Digest of the task's data: a run on other data is refused."),
    File(
        GIVEN,
        "Model, tokenizer and reward model that the recipe names, by key: the SHA-256 of their files, or the commit, as the run "
        "began. A run that finds others is refused.",
    ),
    File(
        FIRST_DAY,
        "The date that a chat template writes into prompts: that of the run's beginning, also when it is resumed.",
    ),
    File("profile.json", "With `--profile`: what every process did when, as a Chrome trace."),
    File(SERIES_FIGURE, "Of a series: every arm's score against the varied key."),
    File("../mlflow.db", "Beside DIR: MLflow's store, where no `tracking.uri` names another."),
    File("../mlartifacts/", "Beside DIR: the files that MLflow shows of runs in that store."),
)
