"""Inputs of the reports of a summarizer: articles, their changed texts, and summaries of them."""

from typing import Any

from stages.concepts import Concept
from stages.core.intervals import Rate, wilson
from stages.records import PairedProbe
from stages.tasks.contract import Exhibit
from tests.report_samples import HOSTILE, difference, make_comparison, make_inputs, shelf

TEXT_CONCEPTS = (
    Concept("typos", (0, 5, 15, 30), "%", neutral=0),
    Concept("nouns dropped", (0, 25, 50, 100), "%", neutral=0),
    Concept("letter case", ("as it was", "lower", "upper"), ordered=False, neutral="as it was"),
)
ARTICLES = (
    "Firefighters in New South Wales are preparing for another day of high temperatures and strong winds. More "
    "than 100 fires are still burning across the state, and the Rural Fire Service says 150 homes have been lost "
    'since Christmas. Its commissioner told reporters: "We are not out of the woods yet." Residents of'
    " the Blue Mountains, west of Sydney, have been told to be ready to leave. Forecasters expect the weather to "
    "ease late on Tuesday, when a cool change is due from the south. About 5,000 people spent the night in halls "
    "and schools.",
    "The Reserve Bank has left interest rates unchanged at 4.25 per cent. Economists had been divided over "
    "whether the board would act before the end of the year. The bank's governor said that growth abroad was "
    "weak, but that spending at home had held up better than expected. The dollar rose by half a cent after the "
    "announcement.",
)
SUMMARIES = (
    "Firefighters in New South Wales expect more heat and wind, with over 100 fires still burning.",
    "The Reserve Bank kept rates at 4.25 per cent despite weak growth abroad.",
)


def text_exhibits(hostile: bool = False) -> list[Exhibit]:
    """Exhibits of a summarizer: typing errors, words left out, letter case, sentences shuffled, and no change."""
    said = HOSTILE if hostile else "A man was told to leave his home on Tuesday."
    shown = []
    for article, summary in zip(ARTICLES, SUMMARIES, strict=True):
        words, sentences = article.split(), article.split(". ")
        changed = {
            "typos": " ".join(w[:1] + w[2:3] + w[1:2] + w[3:] if k % 7 == 3 else w for k, w in enumerate(words)),
            "words left out": " ".join(w for k, w in enumerate(words) if k % 5),
            "upper case": article.upper(),
            "lower case": article.lower(),
            "sentences shuffled": ". ".join(sentences[::-1]),
            "no change": article,
        }
        shown += [
            Exhibit(
                f"{kind}: faithfulness to the original falls by 0.{k}1",
                text=f"{text} {HOSTILE}" if hostile else text,
                original=article,
                answers={"summary of the original": summary, "summary of the changed text": said},
            )
            for k, (kind, text) in enumerate(changed.items(), 1)
        ]
    return shown


def make_text_inputs(hostile: bool = False) -> dict[str, Any]:
    """Inputs of the landscape report of a summarizer, with probes that left nothing of the article."""
    inputs = make_inputs(*TEXT_CONCEPTS, images=False)
    shown = text_exhibits(hostile)
    inputs["galleries"] = {mode: shelf(mode, shown[:7], shown[7:]) for mode in inputs["galleries"]}
    inputs["nearest"] = shown[:3]
    where = {"concept": "nouns dropped", "level": 3, "label": "100%", "invalid": 60}
    few = {"level": 2, "label": "50%", "invalid": 2, **wilson(2, 300).to_json()}
    levels = [where | wilson(60, 300).to_json(), where | few]
    rates = {"left_out": wilson(210, 1138).to_json(), "as_failures": wilson(272, 1200).to_json()}
    inputs["summary"]["invalid"] = {
        "count": 130,
        "probes": 2400,
        **wilson(62, 1200).to_json(),
        "levels": levels,
        **rates,
    }
    inputs["summary"]["modes"][0]["invalid"] = 0.118
    return inputs


def make_text_comparison(hostile: bool = False) -> dict[str, Any]:
    """Inputs of the comparison report of a summarizer: noise, measures, and a control trained on clean articles."""
    inputs = make_comparison(*TEXT_CONCEPTS)
    verdict = inputs["verdict"] | {"control": "clean", "audit": "news"}
    noise = difference(0.51, -0.008, -0.031, 0.015)
    verdict["differences"]["target_failure_rate"]["noise"] = noise
    verdict["differences"]["newly_failing"]["noise"] = difference(0.04, None, 0.031, 0.052)
    said = "the improvement in the target modes is beyond the noise"
    verdict["noise"] = {"beyond": True, "statement": said, **Rate(-0.28, -0.31, -0.25, 3000).to_json()}
    verdict["invalid"] = {"targets": wilson(90, 1000).to_json(), "others": wilson(0, 1000).to_json()}
    other = difference(0.7, 0.004, -0.02, 0.03)
    change = difference(0.655, 0.065, 0.021, 0.11, pairs=1000, before=0.59)
    entry = change | {"noise": other, "control": other, "baselines": {"first words": 0.81, "lead sentence": 0.79}}
    copied = entry | {"pairs": 640, "baselines": {"first words": 1.0, "lead sentence": None}}
    numbers = difference(28.0, 5.6, 4.1, 7.25, pairs=1000, before=22.4)
    again = difference(22.5, 0.1, -0.01, 0.3)
    plain = {"first words": 28.0, "lead sentence": 24.0}
    length = entry | numbers | {"noise": again, "control": again, "baselines": plain}
    measures = {"faithfulness to the original": entry, "copied from the lead": copied, "words": length}
    verdict["measures"] = {
        part: {"pairs": 1000, "items": 50, "invalid": 0, "measures": measures}
        for part in ("clean", "targets", "others")
    }
    said = HOSTILE if hostile else "Fires are still burning in New South Wales."
    at = {"item": "item-0", "cell": (0,) * len(TEXT_CONCEPTS)}
    shown = [PairedProbe(e, e.answers["summary of the changed text"], said, **at) for e in text_exhibits(hostile)]
    return inputs | {"verdict": verdict, "galleries": {"fixed": shown[:8], "newly_failing": shown[8:]}}
