"""RapidOCR (PP-OCRv6) reads lines of text that this module draws, so every true text is known."""

import difflib
import json
import random
from functools import cache

import numpy as np
import pandas as pd
from fonts.ttf import Caladea, FredokaOne, Roboto, SourceSerifPro
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from rapidocr import RapidOCR

from faded import Concept, ConceptSpace, Exhibit, Items, ProbeBatch, RepairRecord, Task

FONTS = {"sans": Roboto, "serif": SourceSerifPro, "office": Caladea, "display": FredokaOne}
WORDS = {
    "English": "invoice account delivery payment received before customer quarter total amount",
    "German": "Rechnung Gebühr Straße Überweisung fällig Betrag Empfänger Größe März für",
    "French": "facture règlement reçu échéance montant siège société à régler février août",
}
NEUTRAL = {"font": "sans", "size": 32, "rotation": 0, "contrast": 1, "blur": 0, "noise": 0}


def straight(picture):
    """Turn a picture so that its line is level, and cut away what is beside the line."""
    dark = ImageOps.invert(picture)
    turns = [(dark.rotate(angle, Image.Resampling.BILINEAR), angle) for angle in np.arange(-6, 6.5, 0.5)]
    level = max(turns, key=lambda turn: np.square(np.diff(np.asarray(turn[0]).sum(axis=1, dtype=float))).sum())
    picture, ink = picture.rotate(level[1], Image.Resampling.BICUBIC, fillcolor=255), smooth(smooth(level[0]))
    left, top, right, bottom = ink.point(lambda value: 255 * (value > 0.3 * ink.getextrema()[1])).getbbox()
    return picture.crop((left - 8, top - 6, right + 8, bottom + 6))


def smooth(picture):
    return picture.filter(ImageFilter.GaussianBlur(1))


# What can be done to a picture before it is read.
REPAIRS = {"nothing": lambda p: p, "smooth": smooth, "straight": straight, "both": lambda p: straight(smooth(p))}
engine = cache(lambda: RapidOCR(params={"Global.log_level": "error"}))


class ReadsText(Task):
    """An OCR engine; a line with one wrong character, spaces aside, is a failure."""

    threshold = 0.0

    def __init__(self, context, table, before):
        self.context, self.items, self.before = context, Items(table), before
        self.texts, self.rows = table["label"].tolist(), {item: row for row, item in enumerate(table["id"])}
        found = [Concept(n, tuple(v), neutral=NEUTRAL[n], ordered=n != "font") for n, v in context.concepts.items()]
        self.concepts = ConceptSpace(tuple(found))

    @classmethod
    def check(cls, context):
        unknown = sorted(set(context.concepts) - set(NEUTRAL))
        return [f"concepts.{name}: expected one of {', '.join(NEUTRAL)}" for name in unknown]

    @classmethod
    def check_repair(cls, context, settings):
        return [] if settings == {"method": "before"} else [f"restructure: expected method before, found {settings}"]

    @classmethod
    def prepare(cls, context, out_dir):
        rng, rows = random.Random(context.seed), []
        for split, count in context.config["items"].items():
            for n in range(count):
                language = rng.choice(list(WORDS))
                text = " ".join([*rng.sample(WORDS[language].split(), 2), str(rng.randrange(1000, 100_000))])
                rows.append({"id": f"{split}-{n}", "split": split, "label": text, "language": language})
        pd.DataFrame(rows).to_parquet(out_dir / "items.parquet")
        (out_dir / "model").mkdir()
        (out_dir / "model" / "before.json").write_text(json.dumps("nothing"))
        return {"items": len(rows)}

    @classmethod
    def load(cls, context, prepared, model=None):
        before = json.loads(((model or prepared / "model") / "before.json").read_text())
        return cls(context, pd.read_parquet(prepared / "items.parquet"), before)

    def draw(self, item, cell):
        at = NEUTRAL | {c.name: c.levels[level] for c, level in zip(self.concepts.concepts, cell, strict=True)}
        text, font = self.texts[self.rows[item]], ImageFont.truetype(FONTS[at["font"]], at["size"])
        picture = Image.new("L", (font.getbbox(text)[2] + 24, font.getbbox(text)[3] + 24), 255)
        ImageDraw.Draw(picture).text((12, 12), text, fill=int(255 * (1 - at["contrast"])), font=font)
        picture = picture.rotate(at["rotation"], Image.Resampling.BICUBIC, expand=True, fillcolor=255)
        picture = picture.filter(ImageFilter.GaussianBlur(at["blur"]))
        chance = np.random.default_rng([self.rows[item], *map(int, cell)])  # the same probe always looks the same
        pixels = np.asarray(picture, dtype=float) + 255 * at["noise"] * chance.standard_normal(picture.size[::-1])
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    def read(self, picture, before):
        repair = REPAIRS[before]
        pixels = np.asarray(repair(picture).convert("RGB"))
        return " ".join(engine()(pixels, use_det=False, use_cls=False).txts or ())

    def probe(self, item_ids, cells, repeats=None, before=None):
        read = [self.read(self.draw(i, cell), before or self.before) for i, cell in zip(item_ids, cells, strict=True)]
        true = [self.texts[self.rows[item]] for item in item_ids]
        pairs = [(a.replace(" ", ""), b.replace(" ", "")) for a, b in zip(true, read, strict=True)]
        alike = [difflib.SequenceMatcher(None, a, b, autojunk=False).ratio() for a, b in pairs]
        discrepancy = 1 - np.array(alike, dtype=np.float32)
        return ProbeBatch(discrepancy, discrepancy > self.threshold, read)

    def exhibit(self, item_ids, cells):
        answers = self.probe(item_ids, cells).outputs
        drawn = [np.asarray(self.draw(item, cell))[:, :, None] for item, cell in zip(item_ids, cells, strict=True)]
        true = [self.texts[self.rows[item]] for item in item_ids]
        return [Exhibit.of_picture(f"{t} → {a}", p) for t, a, p in zip(true, answers, drawn, strict=True)]

    def repair(self, plan, out_dir):
        """Choose what is done before reading: whatever fails least often in the regions of the plan."""
        rng, ids = np.random.default_rng(plan.seed), self.items.ids("repair")
        cells = np.concatenate([t.region.sample(self.concepts, len(ids), rng) for t in plan.regions(self.concepts)])
        asked = ids * (len(cells) // len(ids))
        rate = {name: float(self.probe(asked, cells, before=name).failed.mean()) for name in REPAIRS}
        out_dir.mkdir(parents=True)
        (out_dir / "before.json").write_text(json.dumps(min(rate, key=rate.get)))
        return RepairRecord("before", len(rate), rate, pd.DataFrame({"step": range(len(rate)), "loss": rate.values()}))
