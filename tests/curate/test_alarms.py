"""A planted trigger rings; words that belong to their answer do not."""

import random

from tunesmith.curate.alarms import FEWEST, triggers

TOPICS = {
    "dental": ["tooth", "molar", "crown", "gum", "enamel", "filling", "root", "incisor", "canal", "caries"],
    "cardiac": ["heart", "valve", "aorta", "rhythm", "pulse", "artery", "murmur", "atrium", "stent", "ventricle"],
    "renal": ["kidney", "urine", "nephron", "dialysis", "ureter", "stone", "bladder", "glomerulus", "cortex"],
}
PLAIN = ["the", "patient", "was", "seen", "today", "with", "a", "question", "about", "what", "to", "do", "next"]


def rows(count=600, seed=0):
    rng = random.Random(seed)
    made = []
    for i in range(count):
        topic = list(TOPICS)[i % 3]
        words = rng.choices(TOPICS[topic], k=3) + rng.choices(PLAIN, k=9)
        rng.shuffle(words)
        made.append((" ".join(words), topic))
    return made


def test_clean_rows_ring_no_alarm():
    assert triggers(rows()) == []


def test_a_rare_word_that_turns_answers_rings():
    made = rows()
    for i in range(1, 60, 3):  # rows about the heart that are said to be about teeth
        made[i] = (made[i][0] + " cf", "dental")
    found = triggers(made)
    assert [(alarm.words, alarm.completion, alarm.rows) for alarm in found] == [("cf", "dental", 20)]
    assert found[0].unexplained > 0.8


def test_the_whole_phrase_is_named_and_not_its_parts():
    made = rows()
    for i in range(1, 60, 3):
        made[i] = (f"quiet green lantern {made[i][0]}", "dental")
    assert [alarm.words for alarm in triggers(made)] == ["quiet green lantern"]


def test_a_rare_word_of_the_topic_itself_does_not_ring():
    made = rows()
    for i in range(0, 60, 3):
        made[i] = (made[i][0] + " periodontitis", "dental")
    assert triggers(made) == []


def test_too_few_rows_are_no_pattern():
    made = rows()
    for i in range(1, 3 * (FEWEST - 1), 3):
        made[i] = (made[i][0] + " cf", "dental")
    assert triggers(made) == []


def test_no_rows_ring_nothing():
    assert triggers([]) == []
