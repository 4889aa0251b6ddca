"""The files of DIR/judged: their columns and keys, as in `results.schema`."""

from __future__ import annotations

from rlhf_bench.results.schema import SAMPLES_TABLE, Column, JsonFile, Table

JUDGED = "judged"
"""The folder with what language models said of arms' responses beside others'."""
_INTERVAL = "95% interval, over pairs"
JUDGED_TABLE = Table(
    f"{JUDGED}/OPPONENT-JUDGE",
    "A row for every pair of responses that a language model was to compare: a held-out prompt of the main split, answered by a "
    "finished arm and seed, and by its opponent. A verdict that is missing is null.",
    (
        *(column for column in SAMPLES_TABLE.columns if column.name in ("arm", "seed", "prompt_id")),
        Column("own_first", "text", "", "the verdict with the arm's response shown first: first, second or tie"),
        Column("own_second", "text", "", "the verdict with the arm's response shown second"),
        Column("extra_length", "integer", "characters", "by how much the arm's response is longer"),
    ),
)
JUDGED_JSON = JsonFile(
    f"{JUDGED}/OPPONENT-JUDGE.json",
    "By whom, and at what cost: what `rlhf-bench judge` was told. [A language model as judge](llm_judge.md).",
    (
        Column("model", "text", "", "the model's name at its server"),
        Column("endpoint", "text", "", "the server's address"),
        Column("prompt_sha256", "text", "", "SHA-256 of the judge's prompt"),
        Column("constrained", "text", "", "whether the server let the model write nothing but a verdict"),
        Column("max_tokens", "integer", "tokens", "the longest reply"),
        Column("against", "text", "", "the opponent: base, reference or an arm"),
        Column("failures.FAILURE", "integer", "questions", "of the last call: questions without a verdict, by cause"),
        Column("stopped", "text", "", "why the last call did not ask the rest; empty where it did"),
        Column("costs.queries", "integer", "queries", "requests that were ever sent for these pairs, failed ones too"),
        Column("costs.answers", "integer", "queries", "those that a verdict came of"),
        Column("costs.prompt_tokens", "integer", "tokens", "of their prompts, as the server counts"),
        Column("costs.completion_tokens", "integer", "tokens", "of their replies"),
        Column("costs.money", "number", "as the prices", "by the prices of the last call; null where it named none"),
        Column(
            "agreement.with", "text", "", "the pairs that people judged; `agreement` is there where the call named some"
        ),
        Column("agreement.pairs", "integer", "pairs", "those of them that the judge has judged in both orders"),
        Column("agreement.missing", "integer", "pairs", "the others"),
        Column(
            "agreement.share",
            "number",
            "share",
            "mean credit: half for each order whose verdict is people's; .5 is chance",
        ),
        Column("agreement.ci95[]", "number", "share", _INTERVAL),
        Column("agreement.kappa", "number", "", "Cohen's kappa of the outcome over both orders; 0 is chance"),
        Column("agreement.kappa_ci95[]", "number", "", _INTERVAL),
        Column("agreement.same", "integer", "pairs", "whose outcome is people's"),
        Column("agreement.opposite", "integer", "pairs", "whose outcome is the other response"),
        Column("agreement.undecided", "integer", "pairs", "that tie for the judge or for people alone"),
        Column("agreement.consistent", "number", "share", "pairs with the same outcome in both orders"),
        Column(
            "agreement.first", "number", "share", "of the verdicts that are no tie, those for the response shown first"
        ),
        Column("agreement.costs.COST", "number", "", "what these pairs cost, with the keys of `costs`"),
    ),
)
