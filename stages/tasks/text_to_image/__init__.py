"""Text-to-image generation: a diffusers pipeline under test, with its prompts, judges and repairs."""

from stages.tasks.text_to_image.task import TextToImage
