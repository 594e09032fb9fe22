// Light or dark: as TensorBoard is, else as the system is, else as the reader chose.

let chosen = null;
let changed = () => {};

/** Keep the page's theme that of its surroundings; `onChange` is called when it changes. */
export function followTheme(onChange) {
  changed = onChange;
  apply(false);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => apply(true));
  const outer = tensorboard();
  if (outer) new MutationObserver(() => apply(true)).observe(outer, { attributes: true, attributeFilter: ["class"] });
}

/** The other theme, from now on. */
export function toggleTheme() {
  chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  apply(true);
}

function apply(tell) {
  const outer = tensorboard();
  const dark = outer ? outer.classList.contains("dark-mode") : matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = chosen ?? (dark ? "dark" : "light");
  if (document.documentElement.dataset.theme === theme) return;
  document.documentElement.dataset.theme = theme;
  if (tell) changed();
}

/** The body of the page around this one, if there is one that may be looked at. */
function tensorboard() {
  try {
    return window.parent !== window ? window.parent.document.body : null;
  } catch {
    return null;
  }
}
