/** The ranking as it is seen: places with cards in them, a tray of what is not ranked, a box for the unacceptable. */

import { isUnacceptable, placeOf, same, tiedWith, toRanks, unranked } from "./ranking.js";

const LETTERS = "ABCDEFGHI";

export class Board {
  constructor(form) {
    this.form = form;
    this.cards = new Map([...form.querySelectorAll("[data-response]")].map((card) => [card.dataset.response, card]));
    this.ids = [...this.cards.keys()];
    this.places = this.ids.map((_, index) => newPlace(index, this.ids.length));
    this.tray = document.getElementById("tray");
    this.refused = document.getElementById("unacceptable");
    document.getElementById("places").append(...this.places);
  }

  letter(id) {
    return LETTERS[this.ids.indexOf(id)];
  }

  /** The response that the focus is in. */
  focused() {
    return document.activeElement?.closest("[data-response]")?.dataset.response;
  }

  focus(id) {
    const card = this.cards.get(id);
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  }

  show(ranking) {
    const focused = document.activeElement;
    const before = this.boxes();
    this.places.forEach((place, index) => this.fill(place, ranking.places[index]));
    this.fill(this.refused, ranking.unacceptable);
    this.fill(this.tray, unranked(ranking));
    for (const id of this.ids) this.showRank(ranking, id);
    this.form.elements.ranks.value = JSON.stringify(toRanks(ranking));
    document.documentElement.toggleAttribute("data-complete", !unranked(ranking).length);
    if (focused !== document.activeElement) focused.focus({ preventScroll: true });
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) this.glide(before);
  }

  fill(zone, group) {
    zone.classList.toggle("empty", !group.length);
    zone.classList.toggle("tied", group.length > 1);
    const list = zone.querySelector(".cards");
    const there = [...list.children].map((card) => card.dataset.response);
    if (!same(there, group)) list.replaceChildren(...group.map((id) => this.cards.get(id)));
  }

  showRank(ranking, id) {
    const card = this.cards.get(id);
    card.dataset.rank = isUnacceptable(ranking, id) ? "unacceptable" : placeOf(ranking, id) + 1 || "";
    card.querySelector(".choice select").value = card.dataset.rank;
    card.setAttribute("aria-label", `Response ${this.letter(id)}, ${this.whereIs(ranking, id)}`);
  }

  whereIs(ranking, id) {
    if (isUnacceptable(ranking, id)) return "unacceptable";
    const place = placeOf(ranking, id);
    if (place < 0) return "not ranked";
    const others = tiedWith(ranking, id).map((other) => this.letter(other));
    return `rank ${place + 1} of ${this.ids.length}${others.length ? `, tied with ${others.join(" and ")}` : ""}`;
  }

  boxes() {
    return new Map(this.ids.map((id) => [id, this.cards.get(id).getBoundingClientRect()]));
  }

  glide(before) {
    for (const [id, from] of before) {
      const card = this.cards.get(id);
      const to = card.getBoundingClientRect();
      if (from.top === to.top && from.left === to.left) continue;
      const start = `translate(${from.left - to.left}px, ${from.top - to.top}px)`;
      card.animate([{ transform: start }, { transform: "none" }], { duration: 180, easing: "ease-out" });
    }
  }
}

function newPlace(index, count) {
  const place = document.createElement("li");
  place.className = "place";
  Object.assign(place.dataset, { zone: "place", index, testid: `place-${index + 1}` });
  place.innerHTML = '<span class="place-name"><b></b><span class="place-end"></span></span><div class="cards"></div>';
  place.querySelector("b").textContent = index + 1;
  place.querySelector(".place-end").textContent = index === 0 ? " best" : index === count - 1 ? " worst" : "";
  return place;
}
