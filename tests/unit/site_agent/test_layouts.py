"""Which layout a folder has, and which cases its files and tables add up to. The readers look at names and tables only."""

from pathlib import Path

import pytest

from shared.errors import InputError
from site_agent.data import layouts
from site_agent.data.layouts import records

MNMS_TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
MNMS_HEADER = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def acdc_patient(
    folder: Path, info: str = "ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
) -> Path:
    write(folder / "Info.cfg", info)
    for frame in (1, 12):
        touch(folder / f"{folder.name}_frame{frame:02d}.nii.gz")
        touch(folder / f"{folder.name}_frame{frame:02d}_gt.nii.gz")
    return folder


def mnms_patient(folder: Path, *, masks: bool = True) -> Path:
    touch(folder / f"{folder.name}_sa.nii.gz")
    if masks:
        touch(folder / f"{folder.name}_sa_gt.nii.gz")
    return folder


def read(source: Path, layout: str = "auto") -> layouts.Listing:
    (found,) = layouts.find(source, layout)
    return layouts.listing(found)


def reasons(listing: layouts.Listing) -> dict[str, str]:
    return {rejection.case_id: rejection.reason for rejection in listing.rejections}


# --- golden folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "layout", "facts"),
    [
        ("acdc_raw/raw", "acdc", ("acdc", "patient901", "siemens", "", "DCM", 1, "train", 0, 3)),
        ("mnms_raw/raw", "mnms", ("mnms", "Z9Q8W7", "siemens", "1", "HCM", 1, "train", 0, 2)),
        ("mnms2_raw/raw/MnM2", "mnms2", ("mnms2", "007", "ge", "", "NOR", 0, "train", None, None)),
    ],
)
def test_golden_folders_are_recognised_and_read(shared_data, source, layout, facts):
    (found,) = layouts.find(shared_data / "golden" / source)
    assert found.layout == layout
    (case,) = layouts.listing(found).cases
    assert layouts.listing(found).rejections == ()
    seen = (case.dataset, case.case_id, case.vendor, case.centre, case.diagnosis, case.label, case.split)
    assert (*seen, case.ed_index, case.es_index) == facts


def test_several_sets_below_one_folder_are_all_found(shared_data):
    assert sorted(found.layout for found in layouts.find(shared_data / "golden/acdc_raw/raw")) == ["acdc"]


def test_a_folder_without_a_known_layout_says_what_was_looked_for(tmp_path):
    with pytest.raises(
        InputError, match=r"none of the layouts acdc, mnms, mnms2, dicom, generic: looked for patient\*/Info.cfg"
    ):
        layouts.find(tmp_path)


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(InputError, match=r"source folder .*nowhere does not exist"):
        layouts.find(tmp_path / "nowhere")


def test_a_wanted_layout_that_is_not_there_is_an_error(shared_data):
    with pytest.raises(InputError, match="none of the layouts mnms2"):
        layouts.find(shared_data / "golden/acdc_raw/raw", "mnms2")


def test_an_unknown_layout_name_lists_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="'acdc2' is unknown; choose auto, acdc, mnms, mnms2, dicom, generic"):
        layouts.find(tmp_path, "acdc2")


# --- ACDC -----------------------------------------------------------------------------------------------------------


def test_acdc_training_and_testing_folders_are_the_splits(tmp_path):
    acdc_patient(tmp_path / "database/training/patient001")
    acdc_patient(tmp_path / "database/testing/patient101", "ED: 1\nES: 12\nGroup: NOR\nNbFrame: 20\n")
    seen = {case.case_id: (case.split, case.label, case.vendor) for case in read(tmp_path).cases}
    assert seen == {"patient001": ("train", 1, "siemens"), "patient101": ("test", 0, "siemens")}


def test_an_acdc_folder_with_only_the_cine_is_read_from_it(tmp_path):
    folder = acdc_patient(tmp_path / "training/patient001")
    for frame in (1, 12):
        (folder / f"patient001_frame{frame:02d}.nii.gz").unlink()
    cine = touch(folder / "patient001_4d.nii.gz")
    (case,) = read(tmp_path).cases
    assert case.es == layouts.FrameFile(cine, frame=11, first=1)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("Info.cfg", "Info.cfg does not exist, so diagnosis and ED/ES frames are unknown"),
        (
            "patient001_frame12.nii.gz",
            "missing frame: the ES image patient001_frame12.nii.gz does not exist although its mask is there",
        ),
        ("patient001_frame01_gt.nii.gz", "missing mask: the ED mask patient001_frame01_gt.nii.gz does not exist"),
    ],
)
def test_what_is_missing_from_an_acdc_patient_is_named(tmp_path, damage, reason):
    acdc_patient(tmp_path / "training/patient000")
    (acdc_patient(tmp_path / "training/patient001") / damage).unlink()
    touch(tmp_path / "training/patient001/patient001_4d.nii.gz")  # the cine does not paper over half a pair
    listing = read(tmp_path)
    assert reasons(listing) == {"patient001": reason}
    assert [case.case_id for case in listing.cases] == ["patient000"]


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ("ED: 31\nES: 12\nGroup: DCM\nNbFrame: 30\n", "ED frame 31 is out of range: Info.cfg allows 1 to 30"),
        ("ED: 1\nES: 0\nGroup: DCM\nNbFrame: 30\n", "ES frame 0 is out of range: Info.cfg allows 1 to 30"),
        ("ED: x\nES: 12\nGroup: DCM\n", "ED in Info.cfg is 'x', expected a whole number"),
        ("ES: 12\nGroup: DCM\n", "ED in Info.cfg is '', expected a whole number"),
        ("ED: 1\nES: 12\n", "the diagnosis is empty"),
    ],
)
def test_a_bad_info_file_is_quoted(tmp_path, info, reason):
    acdc_patient(tmp_path / "training/patient001", info)
    assert reasons(read(tmp_path)) == {"patient001": reason}


# --- M&Ms -----------------------------------------------------------------------------------------------------------


def test_mnms_splits_vendors_and_unlabeled_scans(tmp_path):
    rows = [
        "0,A1,Siemens,A,1,0,9,57,NOR,M,176,82",
        "1,B2,Philips,B,2,24.0,9,57,HCM,M,176,82",
        "2,C3,GE,C,4,0,9,57,DCM,F,,",
        "3,D4,Canon,D,5,0,9,57,Other,F,,",
        "4,U5,GE,C,4,3,9,57,NOR,F,,",
    ]
    write(tmp_path / MNMS_TABLE, "\n".join([MNMS_HEADER, *rows]) + "\n")
    for place in ("Training/Labeled/A1", "Validation/B2", "Testing/C3", "Testing/D4"):
        mnms_patient(tmp_path / place)
    mnms_patient(tmp_path / "Training/Unlabeled/U5", masks=False)
    listing = read(tmp_path)
    assert listing.rejections == ()
    assert {case.case_id: (case.vendor, case.label, case.split, case.ed_index) for case in listing.cases} == {
        "A1": ("siemens", 0, "train", 0),
        "B2": ("philips", 1, "test", 24),
        "C3": ("ge", 1, "test", 0),
        "D4": ("canon", 1, "test", 0),
        "U5": ("ge", 0, "train", 3),
    }
    assert {case.case_id for case in listing.cases if case.ed_mask is None} == {"U5"}


def test_mnms_rows_and_folders_that_do_not_meet_are_rejected(tmp_path):
    rows = [
        "0,A1,Siemens,A,1,0,9,57,NOR,M,1,1",
        "1,GONE,Siemens,A,1,0,9,57,NOR,M,1,1",
        "2,NOIMAGE,Siemens,A,1,0,9,57,NOR,M,1,1",
        "3,NOMASK,Siemens,A,1,0,9,57,NOR,M,1,1",
        "4,ODD,United Imaging,E,1,0,9,57,NOR,M,1,1",
        "5,NOED,Siemens,A,1,,9,57,NOR,M,1,1",
        "6,A1,Siemens,A,1,0,9,57,NOR,M,1,1",
        "7,TWO,Siemens,A,1,0,9,57,NOR,M,1,1",
    ]
    write(tmp_path / MNMS_TABLE, "\n".join([MNMS_HEADER, *rows]) + "\n")
    for code in ("A1", "ODD", "NOED", "STRAY", "TWO"):
        mnms_patient(tmp_path / "Training/Labeled" / code)
    mnms_patient(tmp_path / "Testing/TWO")
    mnms_patient(tmp_path / "Training/Labeled/NOMASK", masks=False)
    touch(tmp_path / "Training/Labeled/NOIMAGE/NOIMAGE_sa_gt.nii.gz")
    listing = read(tmp_path)
    assert [case.case_id for case in listing.cases] == ["A1"]
    assert reasons(listing) == {
        "GONE": "label without image: no folder of that name in Training, Validation or Testing",
        "NOIMAGE": "label without image: NOIMAGE_sa.nii.gz does not exist",
        "NOMASK": "missing mask: NOMASK_sa_gt.nii.gz does not exist",
        "ODD": "vendor 'United Imaging' is none of siemens, philips, ge, canon",
        "NOED": "ED is '', expected a whole number",
        "A1": "the information CSV has more than one row for it",
        "STRAY": "image without label: the information CSV has no row for this folder",
        "TWO": "it is in 2 folders (Training/Labeled, Testing)",
    }


def test_a_mnms_table_without_its_columns_names_them(tmp_path):
    write(tmp_path / MNMS_TABLE, ",External code,Pathology\n0,A1,NOR\n")
    with pytest.raises(InputError, match=r"lacks the column\(s\) Centre, ED, ES, VendorName"):
        read(tmp_path)


# --- M&Ms-2 ---------------------------------------------------------------------------------------------------------


def test_mnms2_codes_decide_the_split_and_padding_rows_are_dropped(tmp_path):
    rows = [
        "SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD",
        "1,NOR,SIEMENS,s,1.5",
        "160,LV,Philips Medical Systems,s,1.5",
        "161,NOR,GE MEDICAL SYSTEMS,s,1.5",
        "201,HCM,SIEMENS,s,3",
        ",,,,",
    ]
    write(tmp_path / "dataset_information.csv", "\n".join(rows) + "\n")
    for code in ("001", "160", "161", "201"):
        for part in ("ED", "ES", "ED_gt", "ES_gt"):
            touch(tmp_path / f"dataset/{code}/{code}_SA_{part}.nii.gz")
    listing = read(tmp_path)
    assert listing.rejections == ()
    seen = {case.case_id: (case.split, case.vendor, case.label) for case in listing.cases}
    assert seen == {
        "001": ("train", "siemens", 0),
        "160": ("train", "philips", 1),
        "161": ("test", "ge", 0),
        "201": ("test", "siemens", 1),
    }


def test_mnms2_patients_that_are_incomplete_are_rejected(tmp_path):
    rows = "1,NOR,SIEMENS,s,1.5\n2,NOR,SIEMENS,s,1.5\n3,NOR,SIEMENS,s,1.5\n"
    write(tmp_path / "dataset_information.csv", "SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD\n" + rows)
    for code, parts in (("002", ("ED", "ED_gt", "ES_gt")), ("003", ("ED", "ES", "ES_gt")), ("009", ("ED",))):
        for part in parts:
            touch(tmp_path / f"dataset/{code}/{code}_SA_{part}.nii.gz")
    assert reasons(read(tmp_path)) == {
        "001": "label without image: no folder of that name in dataset/",
        "002": "missing frame: the ES image 002_SA_ES.nii.gz does not exist",
        "003": "missing mask: the ED mask 003_SA_ED_gt.nii.gz does not exist",
        "009": "image without label: dataset_information.csv has no row for this folder",
    }


# --- generic --------------------------------------------------------------------------------------------------------


def test_a_hospitals_table_may_name_cines_or_pairs_of_files(tmp_path):
    header = "case_id,label,diagnosis,vendor,centre,split,dataset,image,ed,es,ed_image,es_image\n"
    rows = [
        "p1,0,HCM,Philips Healthcare,north,train,,scans/p1.nii.gz,0,11,,",
        "p2,,NOR,TOSHIBA,north,test,,,,,p2_ed.nii,p2_es.nii",
        "p3,,DCM,GE,south,,stress,,,,p3_ed.nii,p3_es.nii",
    ]
    write(tmp_path / "cases.csv", "\ufeff" + header.replace(",", ";") + "\n".join(rows).replace(",", ";"))
    for name in ("scans/p1.nii.gz", "p2_ed.nii", "p2_es.nii", "p3_ed.nii", "p3_es.nii"):
        touch(tmp_path / name)
    listing = read(tmp_path)
    assert listing.rejections == ()
    seen = [(c.dataset, c.case_id, c.vendor, c.centre, c.label, c.split, c.ed_index) for c in listing.cases]
    assert seen == [
        ("generic", "p1", "philips", "north", 0, "train", 0),  # the label column wins over the diagnosis
        ("generic", "p2", "canon", "north", 0, "test", None),
        ("stress", "p3", "ge", "south", 1, "train", None),
    ]
    assert listing.cases[0].es == layouts.FrameFile(tmp_path / "scans/p1.nii.gz", frame=11)


def test_rows_and_files_that_do_not_meet_are_rejected(tmp_path):
    rows = [
        "gone,1,siemens,,gone_ed.nii,gone_es.nii",
        "none,1,siemens,,,",
        "odd,2,siemens,,a.nii,b.nii",
        "when,1,siemens,someday,a.nii,b.nii",
        "../up,1,siemens,,a.nii,b.nii",
        "out,1,siemens,,../a.nii,b.nii",
        "blank,,siemens,,a.nii,b.nii",
    ]
    write(tmp_path / "raw/cases.csv", "case_id,label,vendor,split,ed_image,es_image\n" + "\n".join(rows))
    for name in ("a.nii", "b.nii", "stray.nii.gz"):
        touch(tmp_path / "raw" / name)
    assert reasons(read(tmp_path / "raw")) == {
        "gone": "label without image: gone_ed.nii does not exist",
        "none": "missing frame: the column ed_image is empty",
        "odd": "label is 2, expected 0 (normal) or 1 (disease)",
        "when": "split is 'someday', expected train, test or nothing",
        "../up": "case_id '../up' cannot be a folder name; use letters, digits, '.', '_' and '-' (64 at most)",
        "out": "ed_image '../a.nii' points outside the folder of the table",
        "blank": "the diagnosis is empty",
        "stray.nii.gz": "image without label: no row of the table names this file",
    }


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("case_id,vendor,image,ed,es", "needs a column label .* or diagnosis"),
        ("case_id,label,vendor,image", "needs the columns image, ed and es .*, or ed_image and es_image"),
        ("case_id,label,image,ed,es", r"lacks the column\(s\) vendor"),
    ],
)
def test_a_table_that_cannot_work_is_refused_as_a_whole(tmp_path, header, message):
    write(tmp_path / "cases.csv", header + "\n" + ",".join("x" for _ in header.split(",")) + "\n")
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_two_tables_are_one_too_many(tmp_path):
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, "case_id,label,vendor,ed_image,es_image\np,0,ge,x,y\n")
    with pytest.raises(InputError, match="2 CSV files with a column case_id; it must have exactly one"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "vendor"),
    [
        ("Siemens", "siemens"),
        ("SIEMENS HEALTHINEERS", "siemens"),
        ("Philips Medical Systems", "philips"),
        ("GE MEDICAL SYSTEMS", "ge"),
        ("General Electric", "ge"),
        ("Canon", "canon"),
        ("TOSHIBA_MEC", "canon"),
    ],
)
def test_vendor_names_of_scanners_and_tables_are_understood(text, vendor):
    assert records.vendor_name(text) == vendor
