"""bAbI's reader on files written here: what is read, what is refused with file and line, and the split."""

import pytest

from lm2.models.tasks import babi

TEXT = "1 Mary moved to the garden.\n2 John got the milk.\n3 Where is Mary? \tgarden\t1\n4 Mary went to the office.\n5 Where is Mary?\toffice\t4 1\n"


def test_read(tmp_path):
    path = tmp_path / "qa1_single-supporting-fact_train.txt"
    path.write_text(TEXT + "1 John went to the hallway.\n2 Where is John?\thallway\t1\n")
    first, second = babi.read(path)
    assert first.task == second.task == "qa1"
    assert [q.text for q in first.questions] == ["Where is Mary?", "Where is Mary?"]
    assert first.questions[1] == babi.Question(5, "Where is Mary?", "office", (4, 1))
    assert [f.id for f in first.facts_before(first.questions[0])] == [1, 2]
    assert [f.text for f in first.facts_before(first.questions[1])] == [
        "Mary moved to the garden.", "John got the milk.", "Mary went to the office.",
    ]  # fmt: skip
    assert len(second.lines) == 2 and second.facts_before(second.questions[0])[0].text == "John went to the hallway."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 A.\n3 B.\n", ("line 2", "number 3 must be 2 or 1")),
        ("2 A.\n", ("line 1", "number 2 must be 1")),
        ("1 A.\nB is no number\n", ("line 2", "'B is no number'")),
        ("1 A.\n2\n", ("line 2",)),
        ("1 A.\n2 Where?\tgarden\n", ("line 2", "a tab between them")),
        ("1 A.\n2 Where?\t\t1\n", ("line 2",)),
        ("1 A.\n2 Where?\tgarden\t3\n", ("line 2", "support '3'")),
        ("1 A.\n2 Where?\tgarden\t1\n3 Where?\tgarden\t2\n", ("line 3", "support '2'")),
        ("1 A.\n2 Where?\tgarden\tone\n", ("line 2", "'one'")),
        ("١ A.\n", ("line 1",)),
        ("", ("empty",)),
    ],
)
def test_what_is_refused(tmp_path, text, words):
    path = tmp_path / "qa1_x_train.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(babi.BabiError) as error:
        babi.read(path)
    for word in (str(path), *words):
        assert word in str(error.value)


def test_files_that_are_not_there_or_not_text(tmp_path):
    with pytest.raises(babi.BabiError, match="does not exist"):
        babi.read(tmp_path / "qa1_x_train.txt")
    (tmp_path / "qa2_x_train.txt").write_bytes(b"1 \xff\n")
    with pytest.raises(babi.BabiError, match="not UTF-8"):
        babi.read(tmp_path / "qa2_x_train.txt")
    with pytest.raises(babi.BabiError, match="must be called"):
        babi.task_of(tmp_path / "stories.txt")
    with pytest.raises(babi.BabiError, match="no file"):
        babi.find(tmp_path / "nothing")
    with pytest.raises(babi.BabiError, match="'qa99'"):
        babi.labels("qa99")


def test_find_orders_tasks_by_number_and_keeps_endings_apart(tmp_path):
    for name in ("qa10_a_train.txt", "qa2_b_train.txt", "qa2_b_test.txt", "qa1_c_train.txt", "LICENSE.txt"):
        (tmp_path / name).write_text(TEXT)
    assert list(babi.find(tmp_path)) == ["qa1", "qa2", "qa10"]
    assert list(babi.find(tmp_path, "test")) == ["qa2"]
    (tmp_path / "qa1_d_train.txt").write_text(TEXT)
    with pytest.raises(babi.BabiError, match="both qa1"):
        babi.find(tmp_path)


def _stories(count):
    lines = [f"1 Person{i} moved to the garden.\n2 Where is Person{i}?\tgarden\t1\n" for i in range(count)]
    return tuple(babi.parse("".join(lines).splitlines(), "qa1"))


def test_split_is_by_story_and_by_its_words_alone():
    stories = _stories(2000)
    train, held = babi.split(stories, "train"), babi.split(stories, "validation")
    assert len(train) + len(held) == 2000 and not set(train) & set(held)
    assert 150 < len(held) < 250
    assert babi.split(tuple(reversed(stories)), "validation") == tuple(reversed(held)), "the place in the file must not matter"
    assert babi.split(stories, "validation", seed=1) != held
    twice = babi.split(stories[:50] + stories[:50], "validation")
    assert twice == babi.split(stories[:50], "validation") * 2
    with pytest.raises(ValueError):
        babi.split(stories, "test")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends_are_no_part_of_a_story(tmp_path, end):
    path = tmp_path / "qa1_x_test.txt"
    path.write_bytes(("\ufeff" + end.join(["1 Mary went\u2028 out\x0c.", "2 Where is Mary?\tgarden\t1", ""])).encode())
    (story,) = babi.read(path)
    assert [line.text for line in story.lines] == ["Mary went\u2028 out\x0c.", "Where is Mary?"]
    for data, said in ((b"1 Mary\0 went.", "line 1 has a NUL byte"), ("1 A.".encode("utf-16"), "UTF-16"), (b"1 A.\n2 \xff", "byte 7")):
        path.write_bytes(data)
        with pytest.raises(babi.BabiError, match=f"qa1_x_test.txt.*{said}"):
            babi.read(path)
