"""Question answering and instruction following by a chat model."""

from stages.tasks.chat.task import Chat
