// Where the turns of a window begin, with their numbers: [[position, turn], ...], ascending. Turn 0 is what every window begins with, -1 an unknown one.

export const HEAD = 0;
export const UNKNOWN = -1;

/** number and spans once a turn begins at position `began` of a window of `length` tokens; in an empty one what stands before is every window's. */
export function spansAfter(at, length, began) {
  const number = at.number + 1;
  const spans = length ? at.spans : began ? [[0, HEAD]] : [];
  return { number, spans: [...spans.filter(([start]) => start < began), [began, number]] };
}

/** The turn of each position begin .. end - 1. */
export function turnsOf(spans, begin, end) {
  return Array.from({ length: end - begin }, (_, i) => spans.findLast(([start]) => start <= begin + i)?.[1] ?? UNKNOWN);
}

/** Spans in a window of `head` tokens of every window and the positions from `begin` on of this one. */
export function moved(spans, begin, head) {
  const inside = spans.filter(([start]) => start <= begin);
  const after = spans.filter(([start]) => start > begin).map(([start, turn]) => [start - begin + head, turn]);
  const first = inside.length || spans.length || begin ? [[head, inside.length ? inside.at(-1)[1] : UNKNOWN]] : [];
  return [...(head ? [[0, HEAD]] : []), ...first, ...after];
}
