import re
from html.parser import HTMLParser

from evaluation_fakes import PointTask
from evaluation_policies import PointPolicy

from robopolicy.evaluation.report import build_report
from robopolicy.evaluation.result import CurvePoint
from robopolicy.evaluation.rollout import evaluate


class Page(HTMLParser):
    VOID = ("meta", "img", "source", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "srcset", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def report(curve=(), **options):
    policy = PointPolicy(0.5)
    result = evaluate(policy, PointTask, range(100_000, 100_006), progress=False, **options)
    result.info.timing = {}
    return result, build_report(result, curve)


def test_the_page_is_whole_and_loads_nothing():
    curve = [CurvePoint(200, 0.5, 0.4, 0.6, 0.3), CurvePoint(100, 0.2, 0.1, 0.3, 0.0)]
    result, text = report(curve, record_video=2, pictures=3, checkpoint="outputs/run")
    page = Page(text)
    assert page.open == []
    assert page.links
    assert all(link.startswith("data:") for link in page.links)
    assert not re.search(r"https?://|@import|url\(", text)
    assert page.tags.count("video") == 2
    # Two charts, and three pairs of pictures.
    assert page.tags.count("picture") == 2
    assert page.tags.count("img") == 2 + 6
    assert page.tags.count("tr") == 1 + 6 + text.count('class="plain"') * len(
        re.findall(r"<tr><td>(?:provenance|runner|simulator)", text)
    )
    assert f"{result.score.value:.3f}" in text
    assert f"{100 * result.success.low:.1f} to {100 * result.success.high:.1f} %" in text
    assert "Best: " in text
    assert "Worst: " in text
    assert "Over training" in text


def test_without_a_curve_there_is_none_and_equal_results_give_equal_pages():
    _, text = report(record_video=0, pictures=0)
    assert "Over training" not in text
    assert "<video" not in text
    assert report(record_video=0, pictures=0)[1] == text


def test_names_are_escaped():
    _, text = report(record_video=0, pictures=0, checkpoint="<script>x</script>", provenance={"a": "<b>&"})
    assert "<script>" not in text
    assert "&lt;b&gt;&amp;" in text
