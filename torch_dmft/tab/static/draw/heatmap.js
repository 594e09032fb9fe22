// A matrix as coloured cells on a canvas, with a bar that tells the colours.

import { css, h, short } from "../dom.js";
import { maps } from "./colors.js";

/**
 * A heatmap that is drawn again by `draw`.
 *
 * @param {object} options
 *   rows, columns: cells; height: pixels of the canvas, or null for a square; marks: label colours of rows and columns;
 *   onHover(row, column) with nulls when the pointer leaves; onClick(row, column); label: for screen readers.
 */
export function heatmap({ rows, columns, height = null, marks = null, onHover, onClick, label }) {
  const canvas = h("canvas", { class: "heatmap", role: "img", "aria-label": label ?? "heatmap" });
  const low = h("span", {});
  const high = h("span", {});
  const bar = h("canvas", { width: 256, height: 1 });
  const node = h("div", { class: "heatmap-box" }, canvas, h("div", { class: "bar" }, low, bar, high));
  const edge = marks ? 8 : 0;
  let shown = null;
  let cells = null; // the colours of `shown`
  let cross = null;

  function paint() {
    if (!shown || !node.isConnected) return;
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const tall = height ?? width;
    canvas.style.height = `${tall}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(tall * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = false;
    context.drawImage(cells, edge, edge, width - edge, tall - edge);
    const [w, t] = [(width - edge) / columns, (tall - edge) / rows];
    for (let i = 0; marks && i < rows; i++) {
      context.fillStyle = marks[i];
      context.fillRect(0, edge + i * t, edge - 2, Math.ceil(t));
      context.fillRect(edge + i * w, 0, Math.ceil(w), edge - 2);
    }
    context.strokeStyle = css("--mark");
    if (shown.column !== undefined && shown.column >= 0) {
      context.strokeRect(edge + shown.column * w, edge + 0.5, Math.max(w, 1.5), tall - edge - 1);
    }
    if (cross) context.strokeRect(edge + cross[1] * w, edge + cross[0] * t, Math.max(w, 2), Math.max(t, 2));
  }

  const cellOf = (event) => {
    const box = canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top - edge) / (box.height - edge)) * rows);
    const column = Math.floor(((event.clientX - box.left - edge) / (box.width - edge)) * columns);
    return row >= 0 && column >= 0 && row < rows && column < columns ? [row, column] : [null, null];
  };
  canvas.addEventListener("pointermove", (event) => onHover?.(...cellOf(event)));
  canvas.addEventListener("pointerleave", () => onHover?.(null, null));
  canvas.addEventListener("click", (event) => {
    const cell = cellOf(event);
    if (cell[0] !== null) onClick?.(...cell);
  });
  new ResizeObserver(paint).observe(canvas);

  return {
    node,
    canvas,
    /** Show {values, low, high, map, column}: numbers row by row, a missing one is NaN; `column` is marked. */
    draw(next) {
      const same = shown && ["values", "low", "high", "map"].every((name) => shown[name] === next[name]);
      shown = next;
      if (same) {
        paint();
        return;
      }
      cells = pixels(next, rows, columns);
      low.textContent = short(next.low);
      high.textContent = short(next.high);
      const strip = Float32Array.from({ length: 256 }, (_, at) => at / 255);
      bar.getContext("2d").drawImage(pixels({ values: strip, low: 0, high: 1, map: next.map }, 1, 256), 0, 0);
      paint();
    },
    /** Mark a cell, or none. */
    point(row, column) {
      cross = row === null ? null : [row, column];
      paint();
    },
  };
}

function pixels({ values, low, high, map }, rows, columns) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const scale = 255 / (high - low || 1);
  for (let i = 0; i < rows * columns; i++) {
    const value = values[i];
    if (Number.isNaN(value)) continue; // transparent: the page's hatching shows through
    const at = 3 * Math.round(Math.min(255, Math.max(0, (value - low) * scale)));
    image.data.set([maps[map][at], maps[map][at + 1], maps[map][at + 2], 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
