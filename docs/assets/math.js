// Typesets every formula that pymdownx.arithmatex marked: \(...\) in the line, \[...\] on lines of its own.
"use strict";
for (const formula of document.querySelectorAll(".arithmatex")) {
  const source = formula.textContent.trim();
  katex.render(source.slice(2, -2), formula, { displayMode: source.startsWith("\\["), throwOnError: false });
}
