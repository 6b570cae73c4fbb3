/**
 * Rankings, and the functions from one to the next.
 *
 * A ranking is { ids, allowTies, places, unacceptable }: places[0] holds the ids of the best responses; ids in one
 * place are tied; an id that is nowhere is not ranked yet. There are as many places as ids, and a place can be empty,
 * so that somebody can begin with the worst.
 */

export const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
export const placeOf = ({ places }, id) => places.findIndex((tied) => tied.includes(id));
export const isUnacceptable = ({ unacceptable }, id) => unacceptable.includes(id);
export const unranked = (ranking) =>
  ranking.ids.filter((id) => placeOf(ranking, id) < 0 && !isUnacceptable(ranking, id));

/** The ids that share a place with this one. */
export const tiedWith = (ranking, id) => (ranking.places[placeOf(ranking, id)] ?? []).filter((other) => other !== id);

const above = ({ places }, place) => places.findLastIndex((tied, i) => i < place && tied.length);
const below = ({ places }, place) => places.findIndex((tied, i) => i > place && tied.length);

/** From order numbers by id, with gaps or without; what is tied at 4 of 3 comes last. */
export function fromRanks(ids, allowTies, { ranks = {}, unacceptable = [] }) {
  const place = (id) => Math.min(ranks[id] ?? 0, ids.length) - 1;
  const places = ids.map((_, i) => ids.filter((id) => place(id) === i && !unacceptable.includes(id)));
  return { ids, allowTies, places, unacceptable: ids.filter((id) => unacceptable.includes(id)) };
}

/** For drafts: the places, from 1, as they are now. */
export function toDraft(ranking) {
  const ranks = Object.fromEntries(ranking.ids.map((id) => [id, placeOf(ranking, id) + 1 || null]));
  return { ranks, unacceptable: ranking.unacceptable };
}

/** What is submitted: competition ranks, 1, 2, 2, 4. The unacceptable ones share the rank below all others. */
export function toRanks({ ids, places, unacceptable }) {
  const ranks = Object.fromEntries(ids.map((id) => [id, null]));
  let better = 0;
  for (const tied of [...places, unacceptable]) {
    for (const id of tied) ranks[id] = better + 1;
    better += tied.length;
  }
  return { ranks, unacceptable };
}

/** When nothing is left to rank, the places are the ranks. */
export function settled(ranking) {
  return unranked(ranking).length ? ranking : fromRanks(ranking.ids, ranking.allowTies, toRanks(ranking));
}

export function without(ranking, id) {
  const drop = (group) => group.filter((other) => other !== id);
  return { ...ranking, places: ranking.places.map(drop), unacceptable: drop(ranking.unacceptable) };
}

/** Into a place: tied with whoever is there, or before them where ties are not allowed. */
export function placed(ranking, id, place) {
  const next = without(ranking, id);
  if (next.places[place].length && !ranking.allowTies) return inserted(ranking, id, place);
  next.places[place] = ranking.ids.filter((other) => other === id || next.places[place].includes(other));
  return next;
}

/** Into a place of its own before whoever is at `place`. They give way towards the nearest empty place. */
export function inserted(ranking, id, place) {
  const next = without(ranking, id);
  next.places.splice(place, 0, [id]);
  const spare = next.places.findIndex((tied, i) => i > place && !tied.length);
  next.places.splice(spare >= 0 ? spare : next.places.findLastIndex((tied) => !tied.length), 1);
  return next;
}

export function unacceptable(ranking, id) {
  const next = without(ranking, id);
  return { ...next, unacceptable: ranking.ids.filter((other) => other === id || isUnacceptable(next, other)) };
}

/** Out of a tie, or past the next group; what is not ranked comes below all that are. */
export function raised(ranking, id) {
  const place = placeOf(ranking, id);
  if (place < 0) return inserted(ranking, id, above(ranking, ranking.ids.length) + 1);
  if (tiedWith(ranking, id).length) return inserted(ranking, id, place);
  return swapped(ranking, place, Math.max(0, above(ranking, place)));
}

export function lowered(ranking, id) {
  const place = placeOf(ranking, id);
  if (place < 0) return inserted(ranking, id, ranking.ids.length);
  if (tiedWith(ranking, id).length) return inserted(ranking, id, place + 1);
  const next = below(ranking, place);
  return swapped(ranking, place, next < 0 ? ranking.ids.length - 1 : next);
}

export function tiedWithAbove(ranking, id) {
  const place = placeOf(ranking, id);
  const group = above(ranking, place < 0 ? ranking.ids.length : place);
  return group < 0 || !ranking.allowTies ? ranking : placed(ranking, id, group);
}

function swapped(ranking, one, other) {
  const places = [...ranking.places];
  [places[one], places[other]] = [places[other], places[one]];
  return { ...ranking, places };
}
