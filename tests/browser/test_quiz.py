"""A quiz in a real JupyterLab: answered with the keyboard, explained, and remembered."""

from lab import Notebook
from playwright.sync_api import expect

from disagg.course.catalogue import quizzes


def test_a_quiz_is_answered_with_the_keyboard(lab, open_page, shot):
    cells = ['from disagg.course import quiz\nquiz("03")']
    book = Notebook(open_page(lab.notebook("quiz", cells)))
    question = quizzes()["03"][0]
    book.run_all(until=question.text)
    radios = book.page.get_by_role("radio")
    expect(radios).to_have_count(sum(len(each.options) for each in quizzes()["03"]))
    radios.first.focus()
    book.page.keyboard.press("Space")
    expect(book.output).to_contain_text(f"✗ 03, question 1, a: {question.why('a')}")
    book.page.keyboard.press("Tab")  # ipywidgets gives its radio buttons no common name, so arrows do not lead on
    book.page.keyboard.press("Space")
    expect(book.output).to_contain_text(f"✓ 03, question 1, b: {question.why('b')[:60]}")
    shot(book.page, "lab-quiz")
    boxes = [radio.bounding_box() for radio in book.page.locator(".widget-radio-box label").all()]
    assert all(low["y"] >= high["y"] + high["height"] - 1 for high, low in zip(boxes, boxes[1:], strict=False))
