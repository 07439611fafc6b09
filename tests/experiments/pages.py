"""Pages as a strict parser has them, with what makes one readable by everybody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from xml.etree.ElementTree import Element

import html5lib

HTML = "{http://www.w3.org/1999/xhtml}"
SVG = "{http://www.w3.org/2000/svg}"
LOADS = {"src", "srcset", "href", "data", "poster", "action", "background"}


class Fragment:
    """Part of a page, without a parse error; keeps its tree and text."""

    def __init__(self, html: str) -> None:
        self.html = html
        self.tree: Element = self._parsed(html)
        self.text = "".join(self._texts(self.tree))

    def _parsed(self, html: str) -> Element:
        found: Element = html5lib.HTMLParser(strict=True).parseFragment(html)
        return found

    @property
    def tags(self) -> list[tuple[str, dict[str, str]]]:
        """Every element's name without its namespace, and its attributes."""
        return [(str(one.tag).rpartition("}")[2], dict(one.attrib)) for one in self.tree.iter()]

    def _texts(self, element: Element) -> Iterator[str]:
        if element.tag == f"{HTML}style":
            return
        yield element.text or ""
        for child in element:
            yield from self._texts(child)
            yield child.tail or ""

    def all(self, *names: str) -> list[Element]:
        """Every HTML element of these names, in order."""
        wanted = {f"{HTML}{name}" for name in names}
        return [element for element in self.tree.iter() if element.tag in wanted]

    def loaded(self) -> list[str]:
        """What a browser fetches by itself: every address but those of links to follow."""
        return [
            value
            for element in self.tree.iter()
            for name, value in element.attrib.items()
            if name in LOADS and element.tag != f"{HTML}a"
        ]


class Page(Fragment):
    """A whole page, whose headings, ids, tables and figures are in order."""

    def __init__(self, html: str) -> None:
        super().__init__(html)
        self._is_in_order()

    def _parsed(self, html: str) -> Element:
        found: Element = html5lib.HTMLParser(strict=True).parse(html)
        return found

    def section(self, name: str) -> str:
        """The text of a section."""
        return "".join(self._texts(next(one for one in self.all("section") if one.get("id") == name)))

    def _is_in_order(self) -> None:
        levels = [int(str(element.tag)[-1]) for element in self.all("h1", "h2", "h3", "h4")]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels)), "no level of headings is left out"
        ids = Counter(element.get("id") for element in self.tree.iter() if element.get("id"))
        assert not [name for name, count in ids.items() if count > 1]
        targets = [str(link.get("href"))[1:] for link in self.all("a") if str(link.get("href")).startswith("#")]
        assert set(targets) <= set(ids)
        assert all(len(image.get("alt") or "") > 10 for image in self.all("img"))
        figures: list[Any] = [element for element in self.tree.iter() if element.tag == f"{SVG}svg"]
        assert all(len(one.get("aria-label") or "") > 10 and one.get("role") == "img" for one in figures)
        assert all(cell.get("scope") in ("col", "row") for cell in self.all("th"))
        assert self.tree.get("lang") == "en"
