"""The verdict in Japanese, beside the English one: most readers of a report read Japanese first."""

from __future__ import annotations

from dlhpc.report.verdict import FEWEST_POINTS, Verdict, VerdictKind, show

STANDINGS = {
    "not submitted": "未投入",
    "queued": "順番待ち",
    "held": "保留",
    "running": "実行中",
    "finished": "完了",
    "failed": "失敗",
    "cancelled": "中止",
    "unknown": "状態不明",
    "not finished": "未完了",
}
"""Where a run stands."""


def verdict_in_japanese(verdict: Verdict) -> tuple[str, str]:
    """What the English sentence and the English advice say."""
    sentence, advice = _WORDS[verdict.kind](verdict)
    if verdict.so_far is not None:
        reached, planned = verdict.so_far
        sentence = f"ここまで（{show(planned)}エポック中{show(reached)}エポック）の判定：{sentence}"
    return sentence, advice


def _too_early(_verdict: Verdict) -> tuple[str, str]:
    return (
        "検証結果がまだ少ないため、学習曲線は判定できません。",
        f"検証が{FEWEST_POINTS}回以上終わってから、もう一度レポートを作成してください。",
    )


def _learns(verdict: Verdict) -> tuple[str, str]:
    sentence = (
        "学習は順調です。訓練損失と検証損失がともに下がっています。"
        if verdict.has_training
        else "学習は順調です。検証損失が下がっています。"
    )
    if verdict.value is not None and verdict.best_epoch is not None and verdict.by is not None:
        by = verdict.by
        sentence += f"検証の{by.japanese}は第{show(verdict.best_epoch)}エポックの{by.show(verdict.value)}が最高です。"
    advice = (
        "検証損失は最後まで下がり続けています。エポック数を増やすと、さらに良くなる可能性があります。"
        if verdict.still_falling
        else "検証損失は横ばいになりました。エポック数を増やすだけでは、大きな改善は見込めません。"
    )
    if verdict.gap is not None:
        advice += (
            f"訓練の正答率が検証より{verdict.gap * 100:.0f}ポイント高いため、画像を増やすか、"
            "データ拡張（augment）を強めるのが最も効果的です。"
        )
    return sentence, advice


def _overfits(verdict: Verdict) -> tuple[str, str]:
    if verdict.guessed and verdict.by is not None:
        sentence = (
            "最初から過学習しています。訓練損失は下がっていますが、"
            f"検証の結果は{verdict.by.guess_japanese}と変わりません。"
        )
        advice = (
            "訓練用と検証用の画像が同じ種類のもので、ラベルが正しいことを確認してください。"
            "そのうえで、画像やデータ拡張（augment）を増やすか、より小さいネットワークを選んでください。"
        )
        return sentence, advice
    sentence = (
        f"{_since(verdict)}から過学習しています。訓練損失は下がり続けていますが、検証損失は上がっています。"
        "訓練用の画像を丸暗記している状態です。"
    )
    advice = (
        "画像を増やす、データ拡張（augment.flip_horizontal、augment.shift_pixels）を使う、"
        "optimizer.weight_decay を大きくする、より小さいネットワークを選ぶ、エポック数を減らす、"
        "といった対策を試してください。"
    )
    if verdict.best_epoch is not None:
        advice += f"検証結果が最も良いチェックポイント（第{show(verdict.best_epoch)}エポック）は保存されています。"
    return sentence, advice


def _diverges(verdict: Verdict) -> tuple[str, str]:
    sentence = f"{_since(verdict)}から学習が発散しています。損失が増えているか、正常な数値でなくなっています。"
    advice = (
        "学習率（learning_rate.base）を3分の1から10分の1に下げるか、"
        "ウォームアップ（learning_rate.warmup_epochs）を加えてください。"
        "それでも改善しない場合は、壊れた画像や誤ったラベルがないか確認してください。"
    )
    return sentence, advice


def _does_not_learn(verdict: Verdict) -> tuple[str, str]:
    guess = verdict.by.guess_japanese if verdict.by is not None else "当てずっぽう"
    sentence = f"学習できていません。検証の結果は{guess}と変わりません。"
    advice = (
        "学習率（learning_rate.base）を10分の1にした場合と10倍にした場合、別のネットワーク、"
        "optimizer.name: adam、より多いエポック数を試してください。ラベルが正しいことも確認してください。"
    )
    return sentence, advice


def _since(verdict: Verdict) -> str:
    return "途中" if verdict.since_epoch is None else f"第{show(verdict.since_epoch)}エポック"


_WORDS = {
    VerdictKind.TOO_EARLY: _too_early,
    VerdictKind.LEARNS: _learns,
    VerdictKind.OVERFITS: _overfits,
    VerdictKind.DIVERGES: _diverges,
    VerdictKind.DOES_NOT_LEARN: _does_not_learn,
}
