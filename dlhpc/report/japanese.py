"""The verdict in Japanese, beside the English one: most readers of a report read Japanese first."""

from __future__ import annotations

from dlhpc.report.verdict import Verdict, VerdictKind, show

_SENTENCES = {
    VerdictKind.TOO_EARLY: "検証結果がまだ少ないため、学習曲線は判定できません。",
    VerdictKind.LEARNS: "学習は順調です。訓練損失と検証損失がともに下がっています。",
    VerdictKind.OVERFITS: (
        "{epoch}エポックから過学習しています。訓練損失は下がり続けていますが、検証の結果は良くなっていません。"
    ),
    VerdictKind.DIVERGES: "{epoch}エポックから学習が発散しています。学習率（learning_rate.base）を下げてください。",
    VerdictKind.DOES_NOT_LEARN: "学習できていません。検証の結果は当てずっぽうと変わりません。",
}


def verdict_in_japanese(verdict: Verdict) -> str:
    """One sentence or two."""
    epoch = "" if verdict.since_epoch is None else f"第{show(verdict.since_epoch)}"
    return _SENTENCES[verdict.kind].format(epoch=epoch)
