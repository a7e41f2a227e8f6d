# Copyright (c) 2026 PaddlePaddle Authors. All Rights Reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Sentences to embed: the default ones, or the user's own."""

from __future__ import annotations

from pathlib import Path

from w4afp8.demo.errors import DemoError

# Neighbours in the list (0 and 1, 2 and 3, ...) mean alike in other words.
DEFAULT_SENTENCES: tuple[str, ...] = (
    "The cat is asleep on the warm windowsill.",
    "A kitten naps in the sun by the window.",
    "Heavy rain flooded the streets of the old town.",
    "After the downpour, water covered the roads of the historic centre.",
    "She plays the violin in a symphony orchestra.",
    "The orchestra's string section includes her as a violinist.",
    "The central bank raised interest rates to slow inflation.",
    "To bring down rising prices, monetary policy was tightened.",
    "How do I reset the password of my account?",
    "I forgot my login credentials and need to set new ones.",
    "The striker scored twice and his team won the final.",
    "Two goals from the forward decided the championship match.",
    "Simmer the tomatoes with garlic and basil for half an hour.",
    "Cook the pasta sauce of tomato, basil and garlic for thirty minutes.",
    "The spacecraft entered orbit around Mars this morning.",
    "A probe arrived at the red planet earlier today.",
    "The patient was given antibiotics for a lung infection.",
    "Doctors treated his pneumonia with medication against bacteria.",
    "The train to Vienna is delayed by forty minutes.",
    "Passengers bound for Vienna must wait because the railway service runs late.",
    "Neural networks learn from examples by adjusting their weights.",
    "Training a deep model means changing its parameters to fit the data.",
    "The museum displays pottery from the Bronze Age.",
    "Ancient ceramic vessels are on show in the exhibition.",
    "He repaired the flat tyre of his bicycle before breakfast.",
    "The cyclist patched a puncture early in the morning.",
    "The company will cut two thousand jobs next year.",
    "Layoffs announced by the firm affect 2,000 employees.",
    "Whales migrate thousands of kilometres to warmer waters.",
    "Each winter the giant sea mammals travel far to tropical oceans.",
    "The recipe calls for three eggs and a cup of flour.",
    "You need flour and some eggs to bake this cake.",
)


def read_sentences(path: str | Path) -> tuple[str, ...]:
    """Reads one sentence a line, leaving out blank lines.

    Args:
        path: a UTF-8 text file with at least two sentences.

    Returns:
        The sentences in the order of the file.

    Raises:
        DemoError: the file is missing, unreadable, or holds fewer than two sentences.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DemoError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DemoError(f"{path} is not UTF-8 text: {error}") from error
    sentences = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(sentences) < 2:
        raise DemoError(
            f"{path} holds {len(sentences)} sentence(s); expected at least 2, one a line, "
            "because nearest neighbours are compared"
        )
    return sentences
