// Colour maps: numbers between 0 and 1 to red, green and blue.

const VIRIDIS = [
  [68, 1, 84],
  [72, 40, 120],
  [62, 74, 137],
  [49, 104, 142],
  [38, 130, 142],
  [31, 158, 137],
  [53, 183, 121],
  [110, 206, 88],
  [181, 222, 43],
  [253, 231, 37],
];
const BALANCE = [
  [5, 48, 97],
  [33, 102, 172],
  [67, 147, 195],
  [146, 197, 222],
  [209, 229, 240],
  [247, 247, 247],
  [253, 219, 199],
  [244, 165, 130],
  [214, 96, 77],
  [178, 24, 43],
  [103, 0, 31],
];

function between(anchors) {
  return Uint8Array.from({ length: 256 * 3 }, (_, index) => {
    const at = (Math.floor(index / 3) / 255) * (anchors.length - 1);
    const low = Math.min(Math.floor(at), anchors.length - 2);
    const channel = index % 3;
    return Math.round(anchors[low][channel] + (at - low) * (anchors[low + 1][channel] - anchors[low][channel]));
  });
}

/** Each 256 colours of three bytes. */
export const maps = {
  viridis: between(VIRIDIS),
  far: between([...VIRIDIS].reverse()),
  balance: between(BALANCE),
};

/** A colour of a map as CSS. */
export function colorAt(map, share) {
  const at = 3 * Math.round(255 * Math.min(1, Math.max(0, share)));
  return `rgb(${maps[map][at]} ${maps[map][at + 1]} ${maps[map][at + 2]})`;
}

/** Colours that colour-blind readers tell apart (Okabe and Ito), without those of the predictions. */
export const PALETTE = ["#CC79A7", "#E69F00", "#44AA99", "#8C6BB1", "#A6761D", "#7F7F7F"];

/** The smallest and the largest finite number of several arrays. */
export function range(arrays) {
  let low = Infinity;
  let high = -Infinity;
  for (const array of arrays) {
    for (const value of array ?? []) {
      if (!Number.isFinite(value)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low <= high ? [low, high] : [0, 1];
}
