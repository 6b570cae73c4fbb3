/** How the page looks, as this browser remembers it: side by side, raw text, single keys; long responses are cut. */

import * as memory from "./memory.js";

export class View {
  constructor(board) {
    this.board = board;
    this.chosen = { columns: false, raw: false, keys: true, ...memory.get("view") };
    this.keys = document.getElementById("keys");
    this.keysOn = document.getElementById("keys-on");
    document.querySelector(".toggles").addEventListener("click", ({ target }) => this.press(target));
    this.keysOn.addEventListener("change", () => this.choose("keys", this.keysOn.checked));
    board.form.addEventListener("click", ({ target }) => this.open(target.closest(".show-all")));
    const resized = new ResizeObserver(() => this.cut()); // by the window, or by a move to a narrower place
    for (const card of board.cards.values()) resized.observe(card.querySelector(".body"));
    const guidelines = document.getElementById("guidelines");
    if (guidelines && !matchMedia("(min-width: 60rem)").matches) guidelines.open = false; // else they hide the work below them
    this.look();
  }

  press({ id, dataset }) {
    if (id === "show-keys") this.keys.showModal();
    if (dataset.toggle) this.choose(dataset.toggle, !this.chosen[dataset.toggle]);
  }

  choose(name, value) {
    this.chosen[name] = value;
    memory.set("view", this.chosen);
    this.look();
  }

  look() {
    for (const button of document.querySelectorAll("[data-toggle]")) {
      const chosen = this.chosen[button.dataset.toggle];
      button.setAttribute("aria-pressed", chosen);
      document.documentElement.toggleAttribute(`data-${button.dataset.toggle}`, chosen);
    }
    this.keysOn.checked = this.chosen.keys;
    this.cut();
  }

  /** Long responses are cut until they are opened; what was whole once has been read. */
  cut() {
    if (document.documentElement.hasAttribute("data-dragging")) return; // then all are short
    for (const card of this.board.cards.values()) {
      const body = card.querySelector(".body");
      const isOpen = body.classList.contains("opened");
      const isLong = isOpen || body.scrollHeight > body.clientHeight + 4;
      body.classList.toggle("cut", isLong && !isOpen);
      card.querySelector(".show-all").hidden = !isLong;
      if (isOpen || !isLong) card.dataset.read = "";
    }
  }

  open(button) {
    if (!button) return;
    const isOpen = button.closest("[data-response]").querySelector(".body").classList.toggle("opened");
    button.querySelector(".what").textContent = isOpen ? "Show less" : "Show all";
    button.setAttribute("aria-expanded", isOpen);
    this.cut();
  }
}
