"""The chat task: its probes, and the repair of its prompts or its weights."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.params.network import is_served
from stages.tasks.chat.config import CONTEXT, QUESTION, ChatPrepare, ChatRepair
from stages.tasks.chat.configuration import instructions, read_configuration, save_configuration
from stages.tasks.chat.probes import ChatProbes
from stages.tasks.contract import RepairPlan, RepairProbes, RepairRecord, TaskContext
from stages.tasks.language.form import ADAPTER


class Chat(ChatProbes):
    """A chat model under test with its questions, which can be repaired."""

    learns_from_examples = heeds_dose = movable = ("prompt", "lora")

    @classmethod
    def repair_probes(cls, settings: Mapping[str, Any], dose: float) -> RepairProbes | None:
        """See Task: usually one piece helps, so it tries the prompt and all pieces, then with that piece all others."""
        asked = ChatRepair.model_validate(dict(settings))
        if asked.method == "lora":
            return None
        most = max(1, round(asked.candidates * dose))
        pieces = len(instructions(True, asked.instructions)) + asked.examples + len(asked.normalise)
        pieces += asked.order + 2 * asked.second_look + (asked.best_of or 0)  # as many as they ask
        each = (1 + asked.second_look) * (asked.best_of or 1)
        return RepairProbes(most, min(most * each, 2 * pieces + 1), asked.pairs, each)

    @classmethod
    def repair_conflicts(cls, context: TaskContext, asked: ChatRepair) -> list[str]:
        """See Task: weights that are elsewhere, passages that are not before the question, and draws of draws."""
        prepare, found = ChatPrepare.model_validate(dict(context.config)), list[str]()
        if asked.method == "lora" and is_served(prepare.model):
            found.append(
                "restructure.method: lora trains weights, and models behind HTTP have none to train; use method prompt,"
                f" which changes what the model is asked, or remove {context.audit} from repairs:"
            )
        if asked.order and CONTEXT not in prepare.prompt.partition(QUESTION)[0]:
            found.append(f"restructure.settings.order: expected {CONTEXT} before {QUESTION} in prepare.prompt")
        if asked.best_of and prepare.generation.temperature:
            found.append(
                "restructure.settings.best_of: expected prepare.generation.temperature: 0, answers are drawn already"
            )
        return found

    def repair(self, plan: RepairPlan, out_dir: Path) -> RepairRecord:
        from stages.tasks.chat import adapter, repair

        how = adapter if plan.settings["method"] == "lora" else repair
        return how.repair(self, plan, out_dir)

    def move(self, folder: Path, share: float, out_dir: Path) -> None:
        """See Task: only the first pieces of a configuration, in the order in which they were chosen."""
        if (folder / ADAPTER).exists():
            from stages.tasks.training import scale_adapter

            scale_adapter(folder, share, out_dir)
            return
        whole = read_configuration(folder, self.model.hash)
        shutil.copytree(folder, out_dir, dirs_exist_ok=True)
        save_configuration(whole.part(share), out_dir)
        if share < 1 and (card := out_dir / "README.md").exists():
            kept = f"Of {len(whole.pieces)} pieces, configuration.json has the first {len(whole.part(share).pieces)}."
            card.write_text(f"{card.read_text(encoding='utf-8')}\n{kept}\n", encoding="utf-8")

    def pieces_of(self, folder: Path) -> list[str] | None:
        if (folder / ADAPTER).exists():
            return None
        return [str(piece) for piece in read_configuration(folder, self.model.hash).pieces]
