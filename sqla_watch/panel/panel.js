// The panel and the report: copying, keys, unfolding, what is under the pointer, and new requests as they come in.
// Everything can be read without it. Texts go into the page as text, never as markup.
"use strict";
(() => {
  const every = (selector, within = document) => [...within.querySelectorAll(selector)];
  const seen = (element) => element.checkVisibility();

  function make(tag, name, ...content) {
    const element = document.createElement(tag);
    element.className = name;
    element.append(...content);
    return element;
  }

  // Copying

  async function copy(button) {
    const from = document.getElementById(button.dataset.copy);
    let copied = true;
    try {
      await navigator.clipboard.writeText(from.textContent);
    } catch {
      // Not allowed, or not there: a page that came over plain HTTP from another machine.
      const range = document.createRange();
      range.selectNodeContents(from);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      copied = document.execCommand("copy");
    }
    button.textContent = copied ? "Copied" : "Press Ctrl+C";
    button.classList.toggle("done", copied);
    setTimeout(() => {
      button.textContent = "Copy";
      button.classList.remove("done");
    }, 1600);
  }

  // The waterfall: a statement's SQL beneath its row, and all rows unfolded

  function open(row) {
    const next = row.nextElementSibling;
    if (next?.classList.contains("opened")) {
      next.remove();
      return;
    }
    const sql = sqlOf(row);
    if (!sql) return;
    const code = make("code", "", ...sql.cloneNode(true).childNodes);
    const button = make("button", "copy", "Copy");
    button.type = "button";
    button.dataset.copy = sql.id;
    row.after(make("div", "opened", make("div", "code", make("pre", "", code), button)));
  }

  function sqlOf(row) {
    const name = row.dataset.sql ?? row.getAttribute("href")?.slice(1);
    return name ? document.getElementById(`${name}-sql`) : null;
  }

  function unfold(button) {
    const folds = every(".steps details", button.closest(".fall"));
    const unfolding = folds.some((each) => !each.open);
    for (const each of folds) each.open = unfolding || !each.firstElementChild.querySelector("b");
    button.textContent = unfolding ? "Fold all" : "Unfold all";
  }

  // What is under the pointer, or has the focus

  const tip = make("div", "tip");
  tip.hidden = true;
  tip.setAttribute("role", "tooltip");
  tip.id = "tip";

  function show(row, x, y) {
    const around = row.closest("ol").closest("details")?.firstElementChild;
    const like = around?.querySelector("b") ? around : row; // a folded row tells what all in it have
    const text = (selector) => row.querySelector(selector)?.textContent.trim() ?? "";
    const sql = sqlOf(row);
    const facts = make("dl", "");
    const told = [
      ["line", like.querySelector(".where").title],
      ["begins at", row.dataset.at],
      ["takes", text(".took") + (text(".what b") && ` (${text(".what b")})`)],
      ["rows", text(".rows").replace(/ rows?$/, "")],
      ["", every(".tag", row).map((each) => each.textContent).join(", ")],
    ];
    for (const [label, value] of told) {
      if (value) facts.append(make("dt", "", label), make("dd", "", value));
    }
    const whole = sql?.textContent ?? "";
    const shown = whole.length > 900 ? `${whole.slice(0, 900)} …` : whole;
    tip.replaceChildren(sql ? make("pre", "", shown) : make("strong", "", like.querySelector(".label").textContent), facts);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const below = y + 18 + box.height < innerHeight;
    tip.className = "tip";
    tip.style.left = `${Math.max(8, Math.min(x + 12, innerWidth - box.width - 8))}px`;
    tip.style.top = `${below ? y + 18 : Math.max(8, y - box.height - 14)}px`;
    row.setAttribute("aria-describedby", "tip");
  }

  // Of the row that has the focus: in a corner, where it hides neither the row nor those that follow.
  function dock(row) {
    show(row, 0, 0);
    tip.style.left = tip.style.top = "";
    tip.className = `tip docked${row.getBoundingClientRect().bottom > innerHeight / 2 ? " up" : ""}`;
  }

  function hide() {
    if (tip.hidden) return false;
    tip.hidden = true;
    document.querySelector("[aria-describedby=tip]")?.removeAttribute("aria-describedby");
    return true;
  }

  // Keys

  function stops() {
    const main = document.getElementById("main");
    return every(".request .name a, .finding, .steps .row, .used > summary, .further > summary", main).filter(seen);
  }

  function move(by) {
    const all = stops();
    const now = all.indexOf(document.activeElement.closest("a, summary, .row, .finding"));
    const next = all[now < 0 ? (by > 0 ? 0 : all.length - 1) : now + by];
    if (!next) return;
    next.focus({ preventScroll: true, focusVisible: true });
    next.scrollIntoView({ block: "nearest" });
  }

  function fold(row, unfolding) {
    const around = row.parentElement.closest("details");
    const own = row.matches("summary") ? row.parentElement : null;
    if (own && own.open !== unfolding) own.open = unfolding;
    else if (unfolding) move(1);
    else (own ? own.parentElement.closest("details") : around)?.firstElementChild.focus();
  }

  function back() {
    const focused = document.activeElement;
    const way = every("[data-back]").find(seen);
    if (hide()) return;
    if (way) way.click();
    else focused?.blur();
  }

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const at = event.target instanceof Element ? event.target : document.body;
    if (at.matches("input, textarea, select, [contenteditable]")) return;
    const row = at.closest(".steps .row");
    const walking = row || at.matches(".used > summary") || every(".requests").some(seen);
    const acts = {
      j: () => move(1),
      k: () => move(-1),
      ArrowDown: walking && (() => move(1)),
      ArrowUp: walking && (() => move(-1)),
      ArrowRight: row && (() => fold(row, true)),
      ArrowLeft: row && (() => fold(row, false)),
      Enter: row?.matches("div") && (() => dock(row)),
      Escape: back,
    };
    const act = acts[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  addEventListener("click", (event) => {
    const button = event.target.closest("button");
    const row = event.target.closest(".steps a.row");
    if (button?.dataset.copy) copy(button);
    else if (button && "unfold" in button.dataset) unfold(button);
    else if (row && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      open(row);
    }
  });

  function prepare() {
    for (const each of every(".copy, [data-unfold], .keys")) each.hidden = false;
    for (const fall of every("[data-fall]")) {
      for (const row of every(".steps div.row", fall)) row.tabIndex = 0;
      fall.addEventListener("pointermove", (event) => {
        const row = event.pointerType === "mouse" && event.target.closest(".steps .row");
        if (row) show(row, event.clientX, event.clientY);
        else hide();
      });
      fall.addEventListener("pointerleave", hide);
      fall.addEventListener("focusin", (event) => {
        const row = event.target.closest(".steps .row");
        if (row?.matches(":focus-visible")) dock(row);
      });
      fall.addEventListener("focusout", hide);
    }
    addEventListener("scroll", hide, { passive: true });
    document.body.append(tip);
    addEventListener("hashchange", reveal);
    reveal();
  }

  // In a report the scope that is asked for takes the place of the list.
  function reveal() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (!target) return;
    for (let around = target; around; around = around.parentElement?.closest("details")) {
      if (around.matches("details")) around.open = true;
    }
    if (target.matches(".scope, .overview")) {
      target.querySelector("h1").focus({ preventScroll: true });
      scrollTo(0, 0);
    }
  }

  // New requests as they come in

  function live(table) {
    const body = table.tBodies[0];
    const blank = document.getElementById("row").content.querySelector("tr");
    const control = document.querySelector(".live");
    const button = control.querySelector("button");
    const word = control.querySelector("[aria-live]");
    let { after, of } = table.dataset;
    let on = true;
    let asking = false;
    let timer = 0;

    function row(data) {
      const made = blank.cloneNode(true);
      made.id = `r-${data.key}`;
      made.classList.add("new");
      for (const field of every("[data-field]", made)) {
        const name = field.dataset.field;
        field.textContent = data[name];
        if (field.parentElement.matches(".severity")) field.parentElement.hidden = !data[name];
        else if (name === "statements" || name === "rows") field.classList.toggle("one", data[name] === "1");
        else if (field.matches(".tag")) field.hidden = !data[name];
      }
      made.querySelector("a").setAttribute("href", data.href);
      made.querySelector("time").dateTime = data.iso;
      made.querySelector(".tone").className = `tone ${data.tone}`;
      made.querySelector("rect.statement").setAttribute("width", `${data.share}%`);
      return made;
    }

    function tell(state) {
      if (word.textContent !== state) word.textContent = state;
      button.classList.toggle("lost", state === "No answer");
    }

    async function ask() {
      clearTimeout(timer);
      if (asking) return;
      asking = true;
      let pause = 1000;
      try {
        const signal = AbortSignal.timeout(10_000);
        const answer = await fetch(`${table.dataset.live}?after=${after}&of=${of}`, { cache: "no-store", signal });
        if (!answer.ok) throw new Error(answer.statusText);
        const news = await answer.json();
        if (!on) return;
        ({ after, of } = news);
        const rows = news.requests.filter((each) => !document.getElementById(`r-${each.key}`)).map(row);
        body.prepend(...rows);
        while (body.rows.length > Number(table.dataset.most)) body.rows[body.rows.length - 1].remove();
        if (rows.length) {
          document.querySelector(".list").hidden = false;
          document.querySelector(".empty").hidden = true;
        }
        tell("Live");
      } catch {
        if (on) tell("No answer");
        pause = 3000;
      } finally {
        asking = false;
      }
      if (on && !document.hidden) timer = setTimeout(ask, pause);
    }

    button.addEventListener("click", () => {
      on = !on;
      button.setAttribute("aria-pressed", String(on));
      tell(on ? "Live" : "Paused");
      if (on) ask();
      else clearTimeout(timer);
    });
    document.addEventListener("visibilitychange", () => {
      if (on && !document.hidden) ask();
    });
    addEventListener("pageshow", (event) => {
      if (event.persisted && on) ask();
    });
    control.hidden = false;
    timer = setTimeout(ask, 1000);
  }

  prepare();
  const table = document.querySelector("[data-live]");
  if (table) live(table);
})();
