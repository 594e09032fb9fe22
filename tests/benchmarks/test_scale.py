"""The page of costs says what the solvers estimate now."""

from benchmarks.scale import PAGE, page


def test_the_page_is_what_the_script_writes():
    assert PAGE.read_text() == page(), "python -m benchmarks.scale writes it anew"
