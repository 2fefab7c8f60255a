"""Every metric that a run logs: its unit, what it is, when it comes and from where. The README's table is made from this one.

In a name <source> stands for a data source, <reason> for why rows were left out, <set> for val, base, final or test, <n> for a number,
<kind> for a kind of instruction, <task> and <metric> for lm-evaluation-harness's own.
"""

import re
from dataclasses import dataclass
from functools import cache

_PLACES = {
    "source": r"[\w.-]+",
    "reason": r"[\w./-]+",
    "set": "(?:val|base|final|test)",
    "n": r"\d+",
    "kind": r"[\w-]+",
    "task": r"[\w./-]+",
    "metric": r"[\w.-]+",
}


@dataclass(frozen=True)
class Metric:
    name: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class Group:
    """Metrics that come at one time. `origin` is the module that computes them."""

    title: str
    when: str
    origin: str
    metrics: tuple[Metric, ...]


GROUPS = (
    Group(
        "Training",
        "every `trainer.log_every` steps, and at the last one",
        "forge/training/engine.py",
        (
            Metric("train/loss", "nats a target", "the objective's mean over the step's targets, further terms included"),
            Metric("train/cross_entropy", "nats a target", "the plain cross-entropy, where the objective has further terms"),
            Metric("train/z_loss", "nats a target", "the z-loss term, where it is on"),
            Metric("train/grad_norm", "1", "the L2 norm of the mean loss's gradient, all weights together, before clipping"),
            Metric("train/lr", "1", "the learning rate of the step, before a role's factor"),
            Metric("train/tokens", "targets", "trained on so far"),
            Metric("train/epoch", "epochs", "passes over all sources in use so far"),
            Metric("train/epoch/<source>", "epochs", "passes over the source so far"),
            Metric("train/share/<source>", "share of 1", "the source's share of all targets so far"),
        ),
    ),
    Group(
        "Speed",
        "every `trainer.log_every` steps",
        "forge/training/engine.py",
        (
            Metric("perf/step_s", "s", "the step, from its batches to its new weights"),
            Metric("perf/tokens_per_s", "tokens/s", "tokens of the step, padding left out, by perf/step_s"),
            Metric("perf/targets_per_s", "targets/s", "targets of the step by perf/step_s"),
            Metric("perf/fill_share", "share of 1", "positions of the step's batches that hold a token"),
            Metric(
                "perf/eta_s", "s", "until the last step and its evaluation are done, at the mean pace of steps and of evaluations so far"
            ),
            Metric("perf/eval_s", "s", "the evaluation; at each evaluation"),
            Metric("perf/full_eval_s", "s", "the base's evaluation on the full validation set; at the start"),
        ),
    ),
    Group(
        "Memory",
        "every `trainer.log_every` steps",
        "forge/training/memory.py",
        (
            Metric("memory/active_gib", "GiB", "what MLX holds in arrays; on an Apple GPU, of the memory that it shares"),
            Metric("memory/cache_gib", "GiB", "what MLX keeps for later arrays"),
            Metric("memory/peak_gib", "GiB", "the most that MLX has held in arrays since the run's start or resumption"),
            Metric("memory/process_gib", "GiB", "the process's resident memory"),
        ),
    ),
    Group(
        "Evaluation",
        "val: at each evaluation; base: before the first step; final, test: of the best checkpoint, at the end",
        "forge/training/evaluate.py",
        (
            Metric("<set>/loss", "nats a target", "the mean over all sources that have a weight"),
            Metric("<set>/loss/<source>", "nats a target", "the mean over the source's targets"),
            Metric("<set>/perplexity", "1", "e to the loss"),
            Metric("<set>/perplexity/<source>", "1", "e to the source's loss"),
            Metric("<set>/bits_per_byte", "bits/byte", "the loss by UTF-8 byte of the text, which compares tokenizers"),
            Metric("<set>/bits_per_byte/<source>", "bits/byte", "the same of the source"),
            Metric("val/forgetting/<source>", "nats a target", "how far the source's loss is above that before the first step"),
            Metric("final/forgetting/<source>", "nats a target", "the same on the full validation set"),
            Metric("val/unigram_loss", "nats a target", "what token frequencies alone reach on the same targets; at the start"),
            Metric("val/unigram_loss/<source>", "nats a target", "the same of the source; at the start"),
        ),
    ),
    Group(
        "Answers",
        "base: before the first step; final: of the best checkpoint, at the end; where there are conversations, or what is named is on",
        "forge/evaluation/scores.py, forge/evaluation/retention.py, forge/evaluation/harness.py",
        (
            Metric(
                "<set>/exact_match",
                "share of 1",
                "held-out questions whose answer is the reference, but for case, punctuation and articles",
            ),
            Metric("<set>/exact_match/<source>", "share of 1", "the same of the source"),
            Metric("<set>/f1", "1", "the mean over questions of the F1 of the answer's words against the reference's"),
            Metric("<set>/f1/<source>", "1", "the same of the source"),
            Metric("<set>/bleu", "0 to 100", "sacreBLEU of all answers against their references"),
            Metric("<set>/bleu/<source>", "0 to 100", "the same of the source"),
            Metric("<set>/rouge1", "1", "the mean F-measure of shared words"),
            Metric("<set>/rouge1/<source>", "1", "the same of the source"),
            Metric("<set>/rouge2", "1", "the mean F-measure of shared pairs of words"),
            Metric("<set>/rouge2/<source>", "1", "the same of the source"),
            Metric("<set>/rougeL", "1", "the mean F-measure of the longest common subsequence of words"),
            Metric("<set>/rougeL/<source>", "1", "the same of the source"),
            Metric("<set>/ended", "share of 1", "answers that ended by themselves within `evaluation.max_new_tokens`"),
            Metric("<set>/ended/<source>", "share of 1", "the same of the source"),
            Metric("<set>/answers", "questions", "that were asked"),
            Metric("<set>/answers/<source>", "questions", "of the source"),
            Metric(
                "<set>/retention", "share of 1", "instructions of the retention suite that were followed; where evaluation.retention is on"
            ),
            Metric("<set>/retention/<kind>", "share of 1", "of these, by kind"),
            Metric(
                "harness/<task>/<metric>",
                "the task's",
                "lm-evaluation-harness on the evaluated model; where evaluation.harness names tasks",
            ),
            Metric("base/harness/<task>/<metric>", "the task's", "the same on the base"),
        ),
    ),
    Group(
        "Result",
        "at the end",
        "forge/runner.py, forge/estimate.py, forge/tracking/registry.py",
        (
            Metric("best/val_loss", "nats a target", "val/loss of the checkpoint that was chosen; of a sweep, its winner's"),
            Metric("best/step", "steps", "when that was"),
            Metric("release/max_logit_difference", "1", "how far the fused model's logits lie from the evaluated one's"),
            Metric("release/val_loss/<source>", "nats a target", "of the released model, read back from disk; tied to its dataset"),
            Metric("plan/tokens_ratio", "1", "targets trained on, by what `forge.plan` had estimated"),
            Metric(
                "plan/seconds_ratio",
                "1",
                "the time taken up to the release, without that for answers, samples and what else is asked, by what it had estimated",
            ),
            Metric("plan/peak_memory_ratio", "1", "memory/peak_gib, by what it had estimated; missing where answers took the most"),
            Metric("sweep/finished", "runs", "children that came to their end"),
            Metric("sweep/failed", "runs", "children that did not"),
        ),
    ),
    Group(
        "Data",
        "before the first step; share_realised at the end",
        "forge/data/ledger.py, forge/data/__init__.py, forge/assemble.py",
        (
            Metric("data/<source>/rows_in", "rows", "read"),
            Metric("data/<source>/rows_train", "rows", "to train on"),
            Metric("data/<source>/rows_valid", "rows", "kept aside for validation"),
            Metric("data/<source>/rows_test", "rows", "kept aside for the test"),
            Metric("data/<source>/rows_bad", "rows", "that can't be used"),
            Metric("data/<source>/rows_bad/<reason>", "rows", "of these, by reason"),
            Metric("data/<source>/rows_dropped", "rows", "left out by filters, as duplicates, or for their length"),
            Metric("data/<source>/rows_dropped/<reason>", "rows", "of these, by reason"),
            Metric("data/<source>/rows_noted/<reason>", "rows", "used, with something changed on the way"),
            Metric("data/<source>/files_skipped/<reason>", "files", "not read, by reason"),
            Metric("data/<source>/rows_pairs", "rows", "preference pairs"),
            Metric("data/<source>/rows_split", "rows", "cut into several, since they were too long"),
            Metric("data/<source>/rows_truncated", "rows", "of which a part was cut off, since they were too long"),
            Metric("data/<source>/rows_packed", "packed rows", "in one pass over the source"),
            Metric("data/<source>/rows_evaluated", "rows", "in each evaluation"),
            Metric("data/<source>/rows_evaluated_full", "rows", "in the evaluation of the base and of the best checkpoint"),
            Metric("data/<source>/rows_evaluated_test", "rows", "in the test"),
            Metric("data/<source>/bytes_in", "bytes", "UTF-8, of the rows that are kept"),
            Metric("data/<source>/tokens_in", "tokens", "of the rows that are kept, on all sides"),
            Metric("data/<source>/tokens_train", "tokens", "of the rows to train on"),
            Metric("data/<source>/tokens_cut", "tokens", "of these, cut off"),
            Metric("data/<source>/tokens_packed", "tokens", "in the packed rows"),
            Metric("data/<source>/targets_train", "targets", "in one pass over the source"),
            Metric("data/<source>/targets_evaluated", "targets", "in each evaluation"),
            Metric("data/<source>/targets_evaluated_full", "targets", "in the evaluation of the base and of the best checkpoint"),
            Metric("data/<source>/targets_evaluated_test", "targets", "in the test"),
            Metric("data/<source>/padding_share", "share of 1", "positions that hold no token"),
            Metric("data/<source>/weight", "share of 1", "of the training targets that the source is to have"),
            Metric("data/<source>/share_realised", "share of 1", "of the training targets that it had"),
            Metric("data/<source>/epochs_planned", "epochs", "passes over the source in the whole run"),
            Metric("data/overlap", "rows", "that stand on more than one side; has to be 0"),
        ),
    ),
    Group(
        "Machine",
        "every `tracking.system_metrics` seconds; the step counts the samples",
        "forge/tracking/system.py, by MLflow's own probes",
        (
            Metric("system/cpu_utilization_percentage", "%", "of all cores, since the last sample"),
            Metric("system/system_memory_usage_megabytes", "MB (10⁶ bytes)", "the machine's memory in use"),
            Metric("system/system_memory_usage_percentage", "%", "the same, of all"),
            Metric("system/disk_usage_megabytes", "MB (10⁶ bytes)", "in use on the disk of /"),
            Metric("system/disk_usage_percentage", "%", "the same, of all"),
            Metric("system/disk_available_megabytes", "MB (10⁶ bytes)", "free on it"),
            Metric("system/network_receive_megabytes", "MB (10⁶ bytes)", "received since the run's start or resumption"),
            Metric("system/network_transmit_megabytes", "MB (10⁶ bytes)", "sent since then"),
            Metric("system/gpu_<n>_utilization_percentage", "%", "of an NVIDIA GPU, where nvidia-ml-py is installed"),
            Metric("system/gpu_<n>_memory_usage_megabytes", "MB (10⁶ bytes)", "its memory in use"),
            Metric("system/gpu_<n>_memory_usage_percentage", "%", "the same, of all"),
            Metric("system/gpu_<n>_power_usage_watts", "W", "its power draw"),
            Metric("system/gpu_<n>_power_usage_percentage", "%", "the same, of its limit"),
        ),
    ),
)
METRICS = tuple(metric for group in GROUPS for metric in group.metrics)


@cache
def find(name: str) -> Metric | None:
    """What is known of a metric's name. A name that is written out goes before one with a placeholder."""
    found = [metric for metric in METRICS if _pattern(metric.name).fullmatch(name)]
    return min(found, key=lambda metric: metric.name.count("<"), default=None)


def markdown() -> str:
    """A table a group."""
    parts = []
    for group in GROUPS:
        rows = "\n".join(f"| `{metric.name}` | {metric.unit} | {metric.meaning} |" for metric in group.metrics)
        parts.append(f"**{group.title}** – {group.when} (`{group.origin}`)\n\n| metric | unit | what it is |\n| --- | --- | --- |\n{rows}")
    return "\n\n".join(parts) + "\n"


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile("".join(_PLACES.get(part[1:-1], re.escape(part)) for part in re.split(r"(<\w+>)", name)))
