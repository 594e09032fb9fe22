// Where the page's numbers come from: a server, or the page itself if it is one file.

const inlined = document.getElementById("answers");
const answers = inlined ? JSON.parse(inlined.textContent) : null;

/** Whether the page is one file, which holds all it can show. */
export const isFile = answers !== null;

/** Ask a question; throws an Error with a sentence for people. */
export async function ask(question, parameters = {}) {
  if (answers) {
    const key = [question, ...Object.values(parameters)].join("|");
    if (key in answers) return answers[key];
    throw new Error("This file does not hold that. TensorBoard's DMFT tab shows every record.");
  }
  const url = new URL(`../data/${question}`, import.meta.url);
  for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, value);
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Error("TensorBoard does not answer. Is it still running?");
  }
  const type = response.headers.get("content-type") ?? "";
  const answer = type.includes("json") ? await response.json() : {};
  if (!response.ok) throw new Error(answer.problem ?? `TensorBoard answers with an error (${response.status}).`);
  return answer;
}

/** An array as it travels: {shape, data}; the numbers, or null. */
export function numbers(array) {
  if (!array) return null;
  const text = atob(array.data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Float32Array(bytes.buffer);
}

/** The rows of a two-dimensional array as it travels. */
export function rows(array) {
  const all = numbers(array);
  const [count, length] = array?.shape ?? [0, 0];
  return Array.from({ length: count }, (_, row) => all.subarray(row * length, (row + 1) * length));
}

/** A symmetric matrix, row by row, of its upper triangle. */
export function symmetric(triangle, size) {
  const full = new Float32Array(size * size);
  let at = 0;
  for (let i = 0; i < size; i++) {
    for (let j = i; j < size; j++) full[i * size + j] = full[j * size + i] = triangle[at++];
  }
  return full;
}

/** What keeps the last so many answers. */
export class Memory {
  constructor(most) {
    this.most = most;
    this.kept = new Map();
  }

  /** The answer to a key, from memory or from `make`. A failure is not kept. */
  get(key, make) {
    if (!this.kept.has(key)) {
      const answer = make();
      this.kept.set(key, answer);
      answer.catch(() => this.kept.delete(key));
      if (this.kept.size > this.most) this.kept.delete(this.kept.keys().next().value);
    }
    return this.kept.get(key);
  }

  clear() {
    this.kept.clear();
  }
}
