"use strict";
// Asks about one face at a time. Answers are kept in the browser's storage, under the plan and the rater's name, so
// that the rater can continue after a reload.
(() => {
  const audit = JSON.parse(document.getElementById("audit").textContent);
  const element = (id) => document.getElementById(id);
  const PREFIX = `fairface-audit/${audit.plan}`;
  const faces = new Map(audit.faces.map((face) => [face.number, face]));
  const count = audit.faces.reduce((sum, face) => sum + face.attributes.length, 0); // of questions
  let rater = "";
  let questions = []; // [face, attribute], in the rater's order
  let answers = []; // [face, attribute, class; null: can't tell], in the order given
  let others = []; // answers to questions that only a page of an extended plan has
  let current = null; // the question that is shown; null: all are answered
  let isKept = true; // whether the browser keeps the answers
  let savedAnswers = 0; // how many answers the last saved file had

  // 32-bit FNV-1a, mixed by the finalizer of MurmurHash3
  function hash(text) {
    let value = 0x811c9dc5;
    for (const byte of new TextEncoder().encode(text)) value = Math.imul(value ^ byte, 0x01000193);
    value = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
    value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35);
    return (value ^ (value >>> 16)) >>> 0;
  }

  const cleanName = (text) => text.normalize("NFC").trim().replace(/\s+/g, " ");
  const identity = (name) => `${PREFIX}/${name.toLowerCase()}`; // names that differ only in case are the same rater
  const isReversed = () => hash(identity(rater)) % 2 === 1;

  function storage(action) {
    try {
      return action(window.localStorage);
    } catch { // blocked, or full
      isKept = false;
      return null;
    }
  }

  function load(name) {
    const all = JSON.parse(storage((store) => store.getItem(identity(name))) ?? "[]");
    const isAsked = ([face, attribute]) => faces.get(face)?.attributes.includes(attribute);
    return [all.filter(isAsked), all.filter((one) => !isAsked(one))];
  }

  function keep() {
    storage((store) => store.setItem(identity(rater), JSON.stringify([...others, ...answers])));
    element("not-kept").hidden = isKept;
  }

  function start(name) {
    rater = name;
    [answers, others] = load(name);
    storage((store) => store.setItem(PREFIX, rater));
    const place = new Map(audit.faces.map((face) => [face, hash(`${identity(rater)}/${face.number}`)]));
    const order = [...audit.faces].sort((a, b) => place.get(a) - place.get(b) || a.number - b.number);
    questions = order.flatMap((face) => face.attributes.map((attribute) => [face.number, attribute]));
    element("start").hidden = true;
    element("rater-name").textContent = rater;
    element("work").hidden = false;
    keep();
    say("");
    show();
  }

  function show() {
    const answered = new Set(answers.map(([face, attribute]) => `${face}/${attribute}`));
    current = questions.find(([face, attribute]) => !answered.has(`${face}/${attribute}`)) ?? null;
    element("progress").max = count;
    element("progress").value = answers.length;
    element("progress-text").textContent = `${answers.length} of ${count} answers`;
    element("undo").disabled = !answers.length;
    element("save").disabled = !answers.length;
    for (const id of ["question", "cannot-tell", "save"]) element(id).hidden = !current;
    element("done").hidden = Boolean(current);
    if (current) ask(...current);
    element(current ? "title" : "done-title").focus({ preventScroll: true });
  }

  function ask(number, name) {
    const face = faces.get(number);
    const attribute = audit.attributes[name];
    element("face").src = face.image;
    element("title").textContent = attribute.title;
    const buttons = attribute.classes.map(({ name: group, colour }, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.addEventListener("click", () => answer(group));
      if (colour) {
        const swatch = document.createElement("span");
        swatch.className = "swatch";
        swatch.style.setProperty("--colour", colour);
        button.append(swatch);
      }
      const label = document.createElement("span");
      label.className = "class";
      label.textContent = group;
      button.append(label);
      const digit = String((index + 1) % 10);
      if (index < 10) button.setAttribute("aria-keyshortcuts", digit);
      if (index < 10 && digit !== group) {
        const key = document.createElement("kbd");
        key.textContent = digit;
        key.setAttribute("aria-hidden", "true");
        button.append(key);
      }
      return button;
    });
    element("classes").className = attribute.classes.some(({ colour }) => colour) ? "swatches" : "";
    element("classes").replaceChildren(...(isReversed() ? buttons.reverse() : buttons));
  }

  function answer(group) {
    if (!current) return;
    answers.push([...current, group]);
    keep();
    say(`${audit.attributes[current[1]].title}: ${group ?? audit.cannot_tell}`);
    show();
  }

  function undo() {
    const last = answers.pop();
    if (!last) return;
    keep();
    // the question that was answered last is asked again, before others that are open
    const place = questions.findIndex(([face, attribute]) => face === last[0] && attribute === last[1]);
    questions.unshift(...questions.splice(place, 1));
    say("The last answer was undone.");
    show();
  }

  const say = (text) => { element("status").textContent = text; };

  // A cell of a CSV; text that a spreadsheet would run as a formula gets an apostrophe
  function cell(value) {
    const text = String(value).replace(/^(?='*[=+\-@\t\r])/, "'");
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function save() {
    const rows = answers.map(([face, attribute, group]) =>
      [audit.plan, audit.run, rater, answers.length, face, attribute, group ?? audit.cannot_tell]);
    const text = [audit.columns, ...rows].map((row) => `${row.map(cell).join(",")}\r\n`).join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
    link.download = `audit-${audit.run}-${rater}.csv`.replace(/[^\p{L}\p{N}._-]+/gu, "_");
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    savedAnswers = answers.length;
    say(`${answers.length} answers were saved to the file ${link.download}.`);
  }

  const COMMANDS = { c: () => answer(null), z: undo, Backspace: undo, s: save };

  document.addEventListener("keydown", (event) => {
    const isTyping = event.target instanceof HTMLInputElement && event.target.type === "text";
    if (!rater || isTyping || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!element("keys").checked) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const command = Object.hasOwn(COMMANDS, key) ? COMMANDS[key] : null;
    const group = /^\d$/.test(key) && current && audit.attributes[current[1]].classes[(Number(key) + 9) % 10];
    if (!command && !group) return;
    event.preventDefault();
    if (group) answer(group.name);
    else command();
  });

  element("name-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = cleanName(element("name").value);
    if (name) start(name);
  });
  element("name").addEventListener("input", () => {
    const name = cleanName(element("name").value);
    const number = name ? load(name)[0].length : 0;
    element("resume").textContent = number ? `${number} of ${count} answers by ${name} are kept in this browser.` : "";
  });
  element("cannot-tell").addEventListener("click", () => answer(null));
  element("undo").addEventListener("click", undo);
  for (const id of ["save", "save-done"]) element(id).addEventListener("click", save);
  window.addEventListener("storage", (event) => { // another tab of the same rater
    if (!rater || event.key !== identity(rater)) return;
    [answers, others] = load(rater);
    show();
  });
  window.addEventListener("beforeunload", (event) => {
    if (!isKept && answers.length !== savedAnswers) event.preventDefault();
  });

  element("name").value = storage((store) => store.getItem(PREFIX)) ?? "";
  element("name").dispatchEvent(new Event("input"));
  element("not-kept").hidden = isKept;
  element("start").hidden = false;
  element("name").focus();
})();
