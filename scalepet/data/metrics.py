"""Metrics: plain functions of predicted and reference texts. Every score is a share, 0 to 1
(Matthews: -1 to 1), never percent.

A reference is one text, or several right ones of which the best counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from scalepet.errors import ConfigError

Reference = str | tuple[str, ...]
Metric = Callable[[Sequence[str], Sequence[Reference]], float]


def accuracy(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """Share of predictions that equal their reference, character by character."""
    return _mean_of_best(
        lambda prediction, answer: float(prediction == answer), predictions, references
    )


def macro_f1(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """F1 of each class, averaged with equal weight over the classes seen on either side."""
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, average="macro", zero_division=0.0))


def f1(
    predictions: Sequence[str], references: Sequence[Reference], *, positive: str | None = None
) -> float:
    """F1 of one of two classes, as GLUE scores paraphrases; 0 where no side has it.

    Args:
        positive: the class; ``score`` takes the last label.
    """
    from sklearn.metrics import f1_score

    assert positive is not None, "a score of classes knows its labels"
    scores = f1_score(references, predictions, labels=[positive], average=None, zero_division=0.0)
    return float(scores[0])


def matthews(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """Matthews correlation of classes, -1 to 1; 0 where one side has a single class."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions))


def exact_match(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """SQuAD exact match: share of predictions equal to a reference after normalisation.

    Source: evaluate-v1.1.py of SQuAD (Rajpurkar et al. 2016).
    """
    return _mean_of_best(
        lambda prediction, answer: float(_squad_tokens(prediction) == _squad_tokens(answer)),
        predictions,
        references,
    )


def token_f1(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """SQuAD F1: harmonic mean of token precision and recall after normalisation, row mean.

    Source: evaluate-v2.0.py of SQuAD; two texts without a token are equal.
    """
    return _mean_of_best(_token_f1, predictions, references)


def rouge_l(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """ROUGE-L F measure (Lin 2004), row mean, no stemming.

    rouge-score keeps the letters a-z and digits only: texts in other scripts score 0.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    return _mean_of_best(
        lambda prediction, answer: float(scorer.score(answer, prediction)["rougeL"].fmeasure),
        predictions,
        references,
    )


def bleu(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """Corpus BLEU of sacrebleu with its defaults (13a tokens, order 4), divided by 100."""
    from sacrebleu import corpus_bleu

    answers = [_answers(reference) for reference in references]
    width = max(len(texts) for texts in answers)
    # sacrebleu takes one list for each reference number; a reference given twice changes nothing.
    columns = [
        [texts[i] if i < len(texts) else texts[0] for texts in answers] for i in range(width)
    ]
    return float(corpus_bleu(list(predictions), columns).score) / 100.0


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "f1": f1,
    "matthews": matthews,
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "bleu": bleu,
}


def score(
    names: Sequence[str],
    *,
    predictions: Sequence[str],
    references: Sequence[Reference],
    labels: Sequence[str] = (),
) -> dict[str, float]:
    """The named metrics of all rows, in the order of the names.

    Args:
        labels: the classes in their order, where answers are classes; f1 is of the last one.

    Raises:
        ConfigError: names that are not in ``METRICS``, all of them, with those allowed.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        allowed = ", ".join(METRICS)
        raise ConfigError([f"metric {name!r} is unknown; allowed: {allowed}" for name in unknown])
    assert len(predictions) == len(references) > 0, "one prediction for each of some references"
    metrics = dict(METRICS)
    if labels:
        metrics["f1"] = partial(f1, positive=labels[-1])
    return {name: metrics[name](predictions, references) for name in names}


def majority_share(references: Sequence[str]) -> float:
    """Share of the most frequent class: the accuracy of guessing it always."""
    assert references, "a majority of nothing"
    return Counter(references).most_common(1)[0][1] / len(references)


def _answers(reference: Reference) -> tuple[str, ...]:
    return (reference,) if isinstance(reference, str) else tuple(reference)


def _mean_of_best(
    score_one: Callable[[str, str], float],
    predictions: Sequence[str],
    references: Sequence[Reference],
) -> float:
    best = [
        max(score_one(prediction, answer) for answer in _answers(reference))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return sum(best) / len(best)


def _squad_tokens(text: str) -> list[str]:
    kept = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _token_f1(prediction: str, answer: str) -> float:
    predicted, expected = _squad_tokens(prediction), _squad_tokens(answer)
    if not predicted or not expected:
        return float(predicted == expected)
    num_common = sum((Counter(predicted) & Counter(expected)).values())
    return 2.0 * num_common / (len(predicted) + len(expected))
