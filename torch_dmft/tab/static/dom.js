// Small helpers for elements, panels and downloads.

/** An element with properties and children: h("p", {class: "muted"}, "text"). */
export function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A labelled choice among [value, text] pairs. */
export function choice(label, options, chosen, onChange) {
  const select = h("select", { "aria-label": label, onchange: () => onChange(select.value) });
  for (const [value, text] of options) select.append(h("option", { value }, text));
  select.value = String(chosen);
  return h("label", { class: "choice" }, h("span", {}, label), select);
}

/** A group of buttons of which one is pressed. */
export function toggle(options, chosen, onChange) {
  return h(
    "span",
    { class: "toggle", role: "group" },
    options.map(([value, text]) =>
      h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => onChange(value) }, text),
    ),
  );
}

/** A titled box; `saves` maps what a button says to what it does. */
export function panel(title, caption, body, saves = {}) {
  const buttons = Object.entries(saves).map(([text, action]) =>
    h("button", { type: "button", class: "save", title: `Download as ${text}`, onclick: action }, text),
  );
  return h(
    "section",
    { class: "panel" },
    h("header", {}, h("h2", {}, title), h("span", { class: "saves" }, buttons)),
    caption ? h("p", { class: "caption" }, caption) : null,
    body,
  );
}

/** What to do where there is nothing to show. */
export function empty(title, ...lines) {
  return h(
    "div",
    { class: "empty" },
    h("h2", {}, title),
    lines.map((line) => h("p", {}, line)),
  );
}

export function table(lines) {
  const [head, ...rows] = lines;
  return h(
    "div",
    { class: "scrolls" },
    h(
      "table",
      {},
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          head.map((cell) => h("th", {}, cell)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((row) =>
          h(
            "tr",
            {},
            row.map((cell) => h("td", {}, cell)),
          ),
        ),
      ),
    ),
  );
}

export function saveText(name, text) {
  save(name, new Blob([text], { type: "text/csv" }));
}

/** Rows of numbers and words as comma-separated values. */
export function csv(head, rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    const text = String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [head, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

/** Canvases beside each other, below a title, on the page's background. */
export function savePng(name, title, canvases) {
  const ratio = window.devicePixelRatio || 1;
  const gap = 16 * ratio;
  const top = 40 * ratio;
  const whole = document.createElement("canvas");
  whole.width = canvases.reduce((sum, canvas) => sum + canvas.width + gap, gap);
  whole.height = Math.max(...canvases.map((canvas) => canvas.height)) + top + gap;
  const context = whole.getContext("2d");
  context.fillStyle = css("--panel");
  context.fillRect(0, 0, whole.width, whole.height);
  context.fillStyle = css("--ink");
  context.font = `${15 * ratio}px sans-serif`;
  context.fillText(title, gap, 26 * ratio);
  let left = gap;
  for (const canvas of canvases) {
    context.drawImage(canvas, left, top);
    left += canvas.width + gap;
  }
  whole.toBlob((blob) => save(name, blob));
}

function save(name, blob) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name.replaceAll(/[^\w.()=-]+/g, "-") });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** The value of a CSS variable. */
export function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** A number in a few characters. */
export function short(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text =
    size >= 1e5 || size < 1e-3
      ? value.toExponential(digits - 1).replace(/\.?0+e/, "e")
      : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}
